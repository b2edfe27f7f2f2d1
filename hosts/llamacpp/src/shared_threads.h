// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_HOSTS_LLAMACPP_SRC_SHARED_THREADS_H_
#define MNEME_HOSTS_LLAMACPP_SRC_SHARED_THREADS_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>

#include "ggml-backend.h"
#include "ggml.h"
#include "hosts/llamacpp/src/status.h"

struct llama_context;

namespace mneme::llama {

// Runs the engine's tasks on the threads on which ggml computes.
//
// Between two parts of a graph these look for work without a pause for milliseconds, so threads of the engine's own
// would get half of their cores. Here a set of tasks is a graph of one node, which every thread of ggml's takes part
// in: a thread that looks for work finds it at once.
//
// Who waits for whom: a set of tasks that comes while another thread has the threads (a decode, or other tasks) runs on
// its calling thread alone. A decode waits until other threads' tasks are done.
class SharedThreads {
 public:
  using Task = void (*)(void* context, size_t i);

  // pool: what the host has attached to its contexts, which must outlive this; null: what ggml keeps by itself (builds
  // with OpenMP), or else a pool that is made here, for Attach.
  static Status Create(int32_t threads, ggml_threadpool* pool, std::unique_ptr<SharedThreads>* made);
  ~SharedThreads();
  SharedThreads(const SharedThreads&) = delete;
  SharedThreads& operator=(const SharedThreads&) = delete;

  int32_t count() const { return count_; }

  // mneme_parallel_for_fn, `context` being a SharedThreads. Not to be called by a task.
  static void ParallelFor(void* context, size_t n, Task task, void* task_context);

  // Has the context compute on the pool that was made here, if one was; and no longer.
  void Attach(llama_context* context) const;
  void Detach(llama_context* context) const;

  // While it lives the calling thread alone may use the threads, as llama_decode is about to, and tasks run on as many
  // of them as it will: a team of another size would be made anew each time (OpenMP).
  class Turn {
   public:
    Turn(SharedThreads& threads, int32_t count);
    ~Turn();
    Turn(const Turn&) = delete;
    Turn& operator=(const Turn&) = delete;

   private:
    SharedThreads& threads_;
    const std::lock_guard<std::mutex> lock_;
  };

 private:
  // One call of ParallelFor.
  struct Job {
    const size_t n;
    const Task task;
    void* const context;
    std::atomic<size_t> next{0};

    void Run() {
      for (size_t i = next.fetch_add(1, std::memory_order_relaxed); i < n;
           i = next.fetch_add(1, std::memory_order_relaxed)) {
        task(context, i);
      }
    }
  };

  struct ContextDeleter {
    void operator()(ggml_context* context) const { ggml_free(context); }
  };
  struct BackendDeleter {
    void operator()(ggml_backend* backend) const { ggml_backend_free(backend); }
  };

  explicit SharedThreads(int32_t threads) : count_(threads) {}

  Status MakeBackend(ggml_threadpool* pool);
  Status MakeGraph();
  void Run(Job& job);

  void Use(int32_t count) { set_threads_(backend_.get(), count); }

  const int32_t count_;
  void (*set_threads_)(ggml_backend_t, int) = nullptr;
  ggml_threadpool* own_pool_ = nullptr;
  void (*free_pool_)(ggml_threadpool*) = nullptr;
  std::unique_ptr<ggml_backend, BackendDeleter> backend_;
  std::unique_ptr<ggml_context, ContextDeleter> context_;  // of graph_
  ggml_cgraph* graph_ = nullptr;
  Job* job_ = nullptr;  // what the graph's node works on

  std::mutex mutex_;                     // who holds it may use the threads
  std::atomic<std::thread::id> turn_{};  // whose Turn it is
};

}  // namespace mneme::llama

#endif  // MNEME_HOSTS_LLAMACPP_SRC_SHARED_THREADS_H_
