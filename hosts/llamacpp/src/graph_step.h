// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_HOSTS_LLAMACPP_SRC_GRAPH_STEP_H_
#define MNEME_HOSTS_LLAMACPP_SRC_GRAPH_STEP_H_

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "hosts/llamacpp/include/mneme_llama.h"
#include "hosts/llamacpp/src/graph_nodes.h"
#include "hosts/llamacpp/src/head_rules.h"
#include "hosts/llamacpp/src/local_window.h"
#include "hosts/llamacpp/src/model_shape.h"
#include "hosts/llamacpp/src/sequences.h"
#include "hosts/llamacpp/src/status.h"

namespace mneme::llama {

// How retrieved rows take part; constant for an adapter.
struct AttendSettings {
  int32_t position_policy = MNEME_POSITION_FIXED_DISTANCE;
  int32_t fusion = MNEME_FUSION_JOINT;
  float decay_beyond = 1.0f;
  float gate = 0.0f;
  bool always_overwrite = false;
  bool self_check = false;            // see CheckLayer
  std::vector<HeadRules> rules = {};  // [model's layers]

  bool rotated() const { return position_policy == MNEME_POSITION_AS_STORED; }
};

// What happens inside one llama_decode: llama.cpp runs the batch in one or several parts ("ubatches", in the batch's
// order), each through all layers. For every chosen layer the step copies the part's queries, keys and values, replaces
// the attention output, and appends the rows.
//
// Each node that the step stops at costs: llama.cpp starts its threads anew for what follows. So values are copied
// where the keys are, and while no row of a memory is visible there is one stop a layer, at the keys, but for the first
// layer, whose mask and positions show what the cache contains.
//
// Where all of a part's outputs are replaced, llama.cpp's own attention is not computed: its node loses the flag that
// says so until the output is due. Its inputs are what the step works on.
//
// The first error ends the graph and is kept in status(); what llama.cpp computed is then worthless.
class GraphStep {
 public:
  GraphStep(const ModelShape& shape, const std::vector<int32_t>& layers, const AttendSettings& settings);

  // `plan` and the batch's token ids must live until End.
  void Begin(BatchPlan* plan, const int32_t* token_ids);
  void End();

  // The two calls of ggml_backend_sched_eval_callback.
  bool Wants(ggml_tensor& node);
  void Computed(ggml_tensor& node);

  void Fail(Status status) { status_ = std::move(status); }

  const Status& status() const { return status_; }
  // How many of the batch's tokens went through all chosen layers.
  int64_t tokens_done() const { return part_begin_; }

  int64_t capture_us() const { return capture_us_; }
  int64_t attend_us() const { return attend_us_; }
  int64_t append_us() const { return append_us_; }
  // Layers whose captured rows gave the model's own attention, and the largest difference of these.
  int64_t checked_layers() const { return std::count(checked_.begin(), checked_.end(), true); }
  double largest_difference() const { return largest_difference_; }

 private:
  // Rows of one part and layer, [tokens, heads, dim].
  struct Rows {
    std::vector<float> data;
    int64_t tokens = -1;
  };

  bool WantsKind(NodeName name) const;
  // Whether the graph can wait with `values` for the keys, which in llama.cpp's graphs come next.
  bool DeferValues(const ggml_tensor& values);
  void CheckDeferredValues(const ggml_tensor& node);
  static void Copy(const ggml_tensor& node, Rows* rows);
  // Leaves llama.cpp's own attention of the layer that runs out, and puts it back; returns what was left out.
  void Skip(ggml_tensor& attention);
  const ggml_tensor* PutBack();
  // At the attention output, or, where that is left as it is, as soon as the keys and values are there.
  Status FinishLayer(int32_t layer, const ggml_tensor& output, const ggml_tensor* skipped);
  Status AppendLayer(int32_t layer, int64_t tokens);
  // The first time that enough tokens begin a window, llama.cpp's own attention is computed in every layer, and
  // captured rows must give the same: names, order and meaning of a graph's nodes are no promise of llama.cpp's.
  bool BeginsChecking() const;
  bool StopsAtOutput() const { return overwrites_ || checking_; }
  Status CheckLayer(int32_t layer, const AttentionInputs& inputs, const ggml_tensor& output);
  Status CheckPositions(const ggml_tensor& rope) const;
  void EndPart();
  Status BeginPart(const ggml_tensor& mask, int64_t tokens);
  Status AttendRun(int32_t layer, const AttentionInputs& inputs, const Run& part, const LocalWindow& window,
                   const ggml_tensor& output);
  Status AppendRun(int32_t layer, const Run& part);

  const ModelShape& shape_;
  const std::vector<int32_t>& layers_;
  const AttendSettings settings_;
  const NodeTable nodes_;

  BatchPlan* plan_ = nullptr;
  const int32_t* token_ids_ = nullptr;
  Status status_;
  Rows queries_;
  Rows keys_;
  Rows values_;
  bool overwrites_ = false;                       // whether attention outputs of this batch are replaced
  bool overwrites_all_ = false;                   // those of every token
  ggml_tensor* skipped_ = nullptr;                // of the layer that runs
  const ggml_tensor* deferred_values_ = nullptr;  // of the layer that runs; computed with its keys
  int64_t part_begin_ = 0;                        // tokens of the batch before this part
  bool part_checked_ = false;                     // the two below are filled
  std::vector<Run> part_runs_;                    // of the part that have a memory, counted from its first token
  std::vector<LocalWindow> windows_;              // of part_runs_
  std::vector<int64_t> positions_;                // scratch
  std::vector<int64_t> local_positions_;
  std::vector<float> scale_, gate_;  // per head

  std::vector<bool> checked_;  // [layers_]
  bool checking_ = false;      // in this batch
  double largest_difference_ = 0.0;

  int64_t capture_us_ = 0;
  int64_t attend_us_ = 0;
  int64_t append_us_ = 0;
};

}  // namespace mneme::llama

#endif  // MNEME_HOSTS_LLAMACPP_SRC_GRAPH_STEP_H_
