// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_HOSTS_LLAMACPP_SRC_ADAPTER_H_
#define MNEME_HOSTS_LLAMACPP_SRC_ADAPTER_H_

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "hosts/llamacpp/include/mneme_llama.h"
#include "hosts/llamacpp/src/card.h"
#include "hosts/llamacpp/src/graph_step.h"
#include "hosts/llamacpp/src/model_shape.h"
#include "hosts/llamacpp/src/sequences.h"
#include "hosts/llamacpp/src/shared_threads.h"
#include "hosts/llamacpp/src/status.h"
#include "hosts/llamacpp/src/window_state.h"

namespace mneme::llama {

// Whether a context with these parameters can be served; the reasons are mneme_llama_prepare's. Pure.
Status CheckContextParams(const llama_context_params& params, const ModelShape& shape, int32_t window);

// Behind the C functions of mneme_llama.h, which say what each does.
class Adapter {
 public:
  static Status Create(const llama_model* model, const mneme_llama_options& options, std::unique_ptr<Adapter>* adapter);

  const mneme_card* card() const { return card_.get(); }
  const std::vector<int32_t>& layers() const { return layers_; }
  Status FillMemoryOptions(int64_t tokens, mneme_memory_options* options) const;

  Status Prepare(llama_context_params* params);
  Status Bind(llama_context* context);
  Status ShareThreads(SharedThreads* threads);
  Status SetMemory(llama_seq_id id, mneme_memory* memory, mneme_llama_mode mode);
  Status Resume(llama_seq_id id, int64_t tokens, mneme_progress_fn progress, void* progress_context);
  Status SaveWindow(llama_seq_id id);
  Status RestoreWindow(llama_seq_id id);
  Status Rewind(llama_seq_id id, int64_t tokens);
  Status Decode(const llama_batch& batch);
  Status Slide(llama_seq_id id, int64_t keep);
  llama_pos NextPosition(llama_seq_id id) const;
  void FillStats(mneme_llama_stats* stats) const;

 private:
  Adapter(const llama_model* model, const mneme_llama_options& options, ModelShape shape, std::vector<int32_t> layers,
          std::vector<HeadRules> rules, std::string fingerprint, CardPtr card);

  static bool OnNode(ggml_tensor* node, bool ask, void* adapter);

  // Errors: FailedPrecondition if the sequence has no memory.
  Status FindSequence(llama_seq_id id, Sequence** sequence);
  // The same for one whose window is to be filled. Errors: FailedPrecondition also if it is not empty.
  Status FindEmptyWindow(llama_seq_id id, Sequence** sequence, mneme_memory_info* info);
  // Decodes tokens that are in the memory, to fill the window.
  Status DecodeAgain(llama_seq_id id, std::vector<int32_t>& ids, mneme_progress_fn progress, void* progress_context);
  Status CheckWindow(const WindowState& state, int64_t made_at, int64_t next_token) const;
  Status CheckMemory(llama_seq_id id, mneme_memory* memory, mneme_llama_mode mode) const;
  // Slides the windows that the batch would overfill, and moves the plan's positions where they started again.
  Status MakeRoom(BatchPlan* plan);
  Status BeginSteps(BatchPlan* plan);
  // What llama.cpp would end the process for.
  Status CheckBatch(const llama_batch& batch) const;
  Status CheckSequenceId(llama_seq_id id) const;
  // The last position in the cache (-1: none) of every sequence that the batch has tokens of.
  std::map<llama_seq_id, llama_pos> LastPositions(const llama_batch& batch) const;
  // After a failure: takes the batch's tokens, which lie after `last`, out of the cache and their rows out of the
  // memories.
  void UndoSteps(const BatchPlan& plan, const std::map<llama_seq_id, llama_pos>& last);
  Status DecodePlanned(const llama_batch& batch, BatchPlan& plan);

  const llama_model* const model_;
  const ModelShape shape_;
  const std::vector<int32_t> layers_;
  const std::string fingerprint_;
  const CardPtr card_;
  const AttendSettings settings_;
  const int64_t pinned_tokens_;
  const int64_t window_;
  const int64_t restart_beyond_;

  llama_context* context_ = nullptr;
  std::string window_settings_;       // of the prepared parameters
  SharedThreads* threads_ = nullptr;  // the host's; null: the adapter knows of none
  std::map<llama_seq_id, Sequence> sequences_;
  GraphStep step_;
  int64_t tokens_ = 0;
  int64_t decode_us_ = 0;
};

}  // namespace mneme::llama

#endif  // MNEME_HOSTS_LLAMACPP_SRC_ADAPTER_H_
