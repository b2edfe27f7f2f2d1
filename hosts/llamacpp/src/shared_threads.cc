// SPDX-License-Identifier: Apache-2.0
#include "hosts/llamacpp/src/shared_threads.h"

#include <algorithm>
#include <string>
#include <string_view>

#include "llama.h"

namespace mneme::llama {
namespace {

// ggml's CPU backend may have been loaded at run time, so its functions are asked for by name.
template <typename Function>
Function* Named(ggml_backend_reg_t registry, const char* name) {
  return reinterpret_cast<Function*>(ggml_backend_reg_get_proc_address(registry, name));
}

// Such builds keep threads for every thread that computes, and do not use the threads of a pool.
bool UsesOpenMp(ggml_backend_reg_t registry) {
  const auto features_of = Named<ggml_backend_feature*(ggml_backend_reg_t)>(registry, "ggml_backend_get_features");
  if (features_of == nullptr) return false;
  for (const ggml_backend_feature* feature = features_of(registry); feature->name != nullptr; ++feature) {
    if (std::string_view(feature->name) == "OPENMP") return true;
  }
  return false;
}

}  // namespace

SharedThreads::Turn::Turn(SharedThreads& threads, int32_t count) : threads_(threads), lock_(threads.mutex_) {
  threads_.Use(std::clamp(count, 1, threads.count_));
  threads_.turn_.store(std::this_thread::get_id(), std::memory_order_relaxed);
}

SharedThreads::Turn::~Turn() {
  threads_.turn_.store({}, std::memory_order_relaxed);
  threads_.Use(threads_.count_);
}

Status SharedThreads::Create(int32_t threads, ggml_threadpool* pool, std::unique_ptr<SharedThreads>* made) {
  if (threads < 1 || threads > GGML_MAX_N_THREADS) {
    return Invalid("threads: expected 1 to " + std::to_string(GGML_MAX_N_THREADS) + ", got " + std::to_string(threads));
  }
  std::unique_ptr<SharedThreads> shared(new SharedThreads(threads));
  MNEME_LLAMA_RETURN_IF_ERROR(shared->MakeBackend(pool));
  MNEME_LLAMA_RETURN_IF_ERROR(shared->MakeGraph());
  *made = std::move(shared);
  return Status();
}

SharedThreads::~SharedThreads() {
  backend_.reset();  // it knows the pool
  if (own_pool_ != nullptr) free_pool_(own_pool_);
}

Status SharedThreads::MakeBackend(ggml_threadpool* pool) {
  backend_.reset(ggml_backend_init_by_type(GGML_BACKEND_DEVICE_TYPE_CPU, nullptr));
  if (backend_ == nullptr) return NotServed("ggml has no CPU backend");
  ggml_backend_reg_t registry = ggml_backend_dev_backend_reg(ggml_backend_get_device(backend_.get()));
  set_threads_ = Named<void(ggml_backend_t, int)>(registry, "ggml_backend_set_n_threads");
  const auto set_pool = Named<void(ggml_backend_t, ggml_threadpool*)>(registry, "ggml_backend_cpu_set_threadpool");
  const auto new_pool = Named<ggml_threadpool*(ggml_threadpool_params*)>(registry, "ggml_threadpool_new");
  free_pool_ = Named<void(ggml_threadpool*)>(registry, "ggml_threadpool_free");
  if (set_threads_ == nullptr || set_pool == nullptr || new_pool == nullptr || free_pool_ == nullptr) {
    return NotServed("ggml's CPU backend does not let its threads be used");
  }
  Use(count_);
  if (UsesOpenMp(registry)) return Status();
  if (pool == nullptr) {
    ggml_threadpool_params params = ggml_threadpool_params_default(count_);
    own_pool_ = new_pool(&params);
    pool = own_pool_;
    if (pool == nullptr) return {MNEME_STATUS_RESOURCE_EXHAUSTED, "ggml cannot make a thread pool"};
  }
  set_pool(backend_.get(), pool);
  return Status();
}

Status SharedThreads::MakeGraph() {
  const ggml_init_params params = {ggml_tensor_overhead() + ggml_graph_overhead_custom(1, /*grads=*/false) + 1024,
                                   nullptr, /*no_alloc=*/true};
  context_.reset(ggml_init(params));
  if (context_ == nullptr) return {MNEME_STATUS_RESOURCE_EXHAUSTED, "no memory for a graph"};
  const auto take_part = [](ggml_tensor*, int, int, void* threads) {
    static_cast<SharedThreads*>(threads)->job_->Run();
  };
  ggml_tensor* node =
      ggml_custom_4d(context_.get(), GGML_TYPE_F32, 1, 1, 1, 1, nullptr, 0, take_part, GGML_N_TASKS_MAX, this);
  graph_ = ggml_new_graph_custom(context_.get(), 1, /*grads=*/false);
  ggml_build_forward_expand(graph_, node);
  return Status();
}

void SharedThreads::Attach(llama_context* context) const {
  if (own_pool_ != nullptr) llama_attach_threadpool(context, own_pool_, own_pool_);
}

void SharedThreads::Detach(llama_context* context) const {
  if (own_pool_ != nullptr) llama_detach_threadpool(context);
}

void SharedThreads::Run(Job& job) {
  job_ = &job;
  // Whatever it returns: what it left undone is done by the caller.
  static_cast<void>(ggml_backend_graph_compute(backend_.get(), graph_));
  job_ = nullptr;
}

void SharedThreads::ParallelFor(void* context, size_t n, Task task, void* task_context) {
  auto* threads = static_cast<SharedThreads*>(context);
  Job job{n, task, task_context};
  if (threads->turn_.load(std::memory_order_relaxed) == std::this_thread::get_id()) {
    threads->Run(job);
  } else if (const std::unique_lock lock(threads->mutex_, std::try_to_lock); lock.owns_lock()) {
    threads->Run(job);
  }
  job.Run();
}

}  // namespace mneme::llama
