// SPDX-License-Identifier: Apache-2.0
#include "hosts/llamacpp/src/graph_step.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <string>

#include "hosts/llamacpp/src/self_check.h"
#include "hosts/llamacpp/src/tensor_views.h"

namespace mneme::llama {
namespace {

// Adds the microseconds of its scope to a sum.
class Timer {
 public:
  explicit Timer(int64_t* sum) : sum_(sum), start_(Clock::now()) {}
  ~Timer() { *sum_ += std::chrono::duration_cast<std::chrono::microseconds>(Clock::now() - start_).count(); }
  Timer(const Timer&) = delete;
  Timer& operator=(const Timer&) = delete;

 private:
  using Clock = std::chrono::steady_clock;
  int64_t* const sum_;
  const Clock::time_point start_;
};

// The self-check takes so many tokens: fewer tell little of positions, more take time.
constexpr int64_t kLeastCheckedTokens = 8;
constexpr int64_t kMostCheckedTokens = 32;
// Of the largest value of an output: rounding of the cache to f16 or bf16 stays below, another graph does not.
constexpr double kMostDifference = 0.02;

// Rows [first, first + rows) of a permuted view [dim, rows, heads], as [rows, heads, dim].
std::vector<float> DenseRows(const ggml_tensor& view, int64_t first, int64_t rows) {
  std::vector<float> dense;
  for (int64_t row = first; row < first + rows; ++row) {
    for (int64_t head = 0; head < view.ne[2]; ++head) {
      const char* const at = static_cast<const char*>(view.data) + row * view.nb[1] + head * view.nb[2];
      const auto* const begin = reinterpret_cast<const float*>(at);
      dense.insert(dense.end(), begin, begin + view.ne[0]);
    }
  }
  return dense;
}

std::string LayerText(int32_t layer) {
  return "layer " + std::to_string(layer) + ": ";
}

}  // namespace

GraphStep::GraphStep(const ModelShape& shape, const std::vector<int32_t>& layers, const AttendSettings& settings)
    : shape_(shape),
      layers_(layers),
      settings_(settings),
      nodes_(shape, layers, settings.rotated()),
      checked_(layers.size(), false) {}

void GraphStep::Begin(BatchPlan* plan, const int32_t* token_ids) {
  plan_ = plan;
  token_ids_ = token_ids;
  status_ = Status();
  part_begin_ = 0;
  EndPart();
  queries_.tokens = keys_.tokens = values_.tokens = -1;
  deferred_values_ = nullptr;
  const auto overwrites = [&](const SequenceStep& step) { return settings_.always_overwrite || step.visible; };
  overwrites_ = settings_.always_overwrite || std::any_of(plan->steps.begin(), plan->steps.end(), overwrites);
  checking_ = BeginsChecking();
  overwrites_all_ = !checking_ && std::all_of(plan->runs.begin(), plan->runs.end(), [&](const Run& run) {
    return run.step >= 0 && overwrites(plan->steps[run.step]);
  });
}

void GraphStep::End() {
  PutBack();  // of a graph that llama.cpp gave up; it may be used again
  plan_ = nullptr;
}

bool GraphStep::BeginsChecking() const {
  if (!settings_.self_check || std::all_of(checked_.begin(), checked_.end(), [](bool checked) { return checked; })) {
    return false;
  }
  return std::any_of(plan_->runs.begin(), plan_->runs.end(), [&](const Run& run) {
    return run.step >= 0 && run.end - run.begin >= kLeastCheckedTokens &&
           plan_->positions[run.begin] == plan_->steps[run.step].sequence->first_position;
  });
}

Status GraphStep::CheckLayer(int32_t number, const AttentionInputs& inputs, const ggml_tensor& output) {
  const auto place = static_cast<size_t>(std::lower_bound(layers_.begin(), layers_.end(), number) - layers_.begin());
  const LayerShape& layer = shape_.layers[number];
  const auto begins_window = [&](const Run& run) {
    return run.end - run.begin >= kLeastCheckedTokens &&
           plan_->positions[part_begin_ + run.begin] == plan_->steps[run.step].sequence->first_position;
  };
  const auto run = std::find_if(part_runs_.begin(), part_runs_.end(), begins_window);
  if (checked_[place] || run == part_runs_.end() || keys_.tokens != output.ne[1] || values_.tokens != output.ne[1]) {
    return Status();  // AppendLayer refuses rows that are missing
  }
  const auto tokens = static_cast<size_t>(std::min(run->end - run->begin, kMostCheckedTokens));
  const auto rows_of = [&](const std::vector<float>& rows, int64_t row) {
    return std::span(rows).subspan(static_cast<size_t>(run->begin * row), tokens * static_cast<size_t>(row));
  };
  const int64_t query_row = static_cast<int64_t>(layer.q_heads) * layer.key_dim;
  std::vector<float> rotated_queries;
  if (settings_.rotated()) {
    rotated_queries = DenseRows(*inputs.query, run->begin, static_cast<int64_t>(tokens));
  }
  CapturedRows rows = {
      .queries = settings_.rotated() ? std::span<const float>(rotated_queries) : rows_of(queries_.data, query_row),
      .keys = rows_of(keys_.data, static_cast<int64_t>(layer.kv_heads) * layer.key_dim),
      .values = rows_of(values_.data, static_cast<int64_t>(layer.kv_heads) * layer.value_dim),
      .positions = std::span(plan_->positions).subspan(static_cast<size_t>(part_begin_ + run->begin), tokens),
      .rotated = settings_.rotated(),
      .scale = settings_.rotated() ? inputs.scale : inputs.scale * inputs.query_factor,
      .cache_type = inputs.keys->type};
  const auto* own = reinterpret_cast<const float*>(static_cast<const char*>(output.data) + run->begin * output.nb[1]);
  const std::span own_rows(own, tokens * static_cast<size_t>(layer.q_heads) * layer.value_dim);
  double difference = AttentionDifference(layer, rows, own_rows);
  rows.query_type = GGML_TYPE_F16;
  difference = std::min(difference, AttentionDifference(layer, rows, own_rows));
  if (!(difference <= kMostDifference)) {
    return Refused(LayerText(number) + "the attention over the captured rows differs from the model's own by " +
                   std::to_string(difference) + " of its largest value, allowed are " +
                   std::to_string(kMostDifference) + "; the adapter does not know this graph");
  }
  largest_difference_ = std::max(largest_difference_, difference);
  checked_[place] = true;
  return Status();
}

void GraphStep::Skip(ggml_tensor& attention) {
  if (skipped_ != nullptr || (attention.flags & GGML_TENSOR_FLAG_COMPUTE) == 0) return;
  attention.flags &= ~GGML_TENSOR_FLAG_COMPUTE;
  skipped_ = &attention;
}

const ggml_tensor* GraphStep::PutBack() {
  ggml_tensor* const skipped = skipped_;
  if (skipped != nullptr) skipped->flags |= GGML_TENSOR_FLAG_COMPUTE;
  skipped_ = nullptr;
  return skipped;
}

void GraphStep::EndPart() {
  part_checked_ = false;
  windows_.clear();
  part_runs_.clear();
}

bool GraphStep::WantsKind(NodeName name) const {
  switch (name.kind) {
    case NodeKind::kNone: return false;
    case NodeKind::kQuery: return StopsAtOutput();
    case NodeKind::kKey:
    case NodeKind::kPositions:
    case NodeKind::kValue: return true;
    case NodeKind::kAttentionOut: return StopsAtOutput() || name.layer == layers_.front();
  }
  return false;
}

bool GraphStep::Wants(ggml_tensor& node) {
  if (plan_ == nullptr || plan_->steps.empty()) return false;
  if (deferred_values_ != nullptr) CheckDeferredValues(node);
  if (!status_.ok()) return true;  // to end the graph at its next node
  // Between a layer's keys and its output there is no attention but its own; FinishLayer makes sure.
  if (node.op == GGML_OP_FLASH_ATTN_EXT && overwrites_all_ && keys_.tokens >= 0) Skip(node);
  const NodeName name = nodes_.Find(node);
  if (!WantsKind(name)) return false;
  const LayerShape& layer = shape_.layers[name.layer];
  switch (name.kind) {
    case NodeKind::kQuery: return HasHeads(node, layer.key_dim, layer.q_heads);
    case NodeKind::kKey:
    case NodeKind::kPositions: return HasHeads(node, layer.key_dim, layer.kv_heads);
    case NodeKind::kValue: return HasHeads(node, layer.value_dim, layer.kv_heads) && !DeferValues(node);
    default: return true;
  }
}

bool GraphStep::DeferValues(const ggml_tensor& values) {
  if (keys_.tokens >= 0) return false;  // the keys came first
  deferred_values_ = &values;
  return true;
}

// The allocator gives the place of values to others once they have been used.
void GraphStep::CheckDeferredValues(const ggml_tensor& node) {
  const auto is_view = [](const ggml_tensor& tensor) {
    return tensor.op == GGML_OP_RESHAPE || tensor.op == GGML_OP_VIEW || tensor.op == GGML_OP_PERMUTE ||
           tensor.op == GGML_OP_TRANSPOSE;
  };
  if (is_view(node)) return;
  for (const ggml_tensor* source : node.src) {
    while (source != nullptr && source != deferred_values_ && is_view(*source)) source = source->src[0];
    if (source == deferred_values_) status_ = Refused("the graph uses a layer's values before it computes the keys");
  }
}

void GraphStep::Computed(ggml_tensor& node) {
  const ggml_tensor* const skipped = PutBack();
  if (!status_.ok()) return;
  const NodeName name = nodes_.Find(node);
  if (name.kind == NodeKind::kAttentionOut) {
    status_ = FinishLayer(name.layer, node, skipped);
    return;
  }
  {
    const Timer timer(&capture_us_);
    if (name.layer == nodes_.position_layer() && node.op == GGML_OP_ROPE) status_ = CheckPositions(node);
    if (name.kind == NodeKind::kPositions) return;
    Copy(node, name.kind == NodeKind::kQuery ? &queries_ : name.kind == NodeKind::kValue ? &values_ : &keys_);
    if (name.kind != NodeKind::kQuery && deferred_values_ != nullptr) {
      Copy(*deferred_values_, &values_);
      deferred_values_ = nullptr;
    }
  }
  const bool complete = keys_.tokens >= 0 && values_.tokens >= 0;
  if (status_.ok() && complete && !StopsAtOutput() && name.layer != layers_.front()) {
    status_ = AppendLayer(name.layer, node.ne[2]);
  }
}

void GraphStep::Copy(const ggml_tensor& node, Rows* rows) {
  const int64_t dim = node.ne[0];
  const int64_t heads = node.ne[1];
  rows->tokens = node.ne[2];
  rows->data.resize(static_cast<size_t>(dim * heads * rows->tokens));
  float* to = rows->data.data();
  for (int64_t token = 0; token < rows->tokens; ++token) {
    const char* from = static_cast<const char*>(node.data) + token * node.nb[2];
    for (int64_t head = 0; head < heads; ++head, to += dim) {
      std::memcpy(to, from + head * node.nb[1], static_cast<size_t>(dim) * sizeof(float));
    }
  }
}

Status GraphStep::FinishLayer(int32_t number, const ggml_tensor& output, const ggml_tensor* skipped) {
  const LayerShape& layer = shape_.layers[number];
  const int64_t tokens = output.ne[1];
  AttentionInputs inputs;
  {
    const Timer timer(&capture_us_);
    if (Status status = FindAttentionInputs(output, layer, &inputs); !status.ok()) {
      return {status.code(), LayerText(number) + status.message()};
    }
    if (skipped != nullptr && skipped != inputs.attention) {
      return Refused(LayerText(number) + "the graph has another attention node than the adapter expects");
    }
    if (StopsAtOutput() && !settings_.rotated() && queries_.tokens != tokens) {
      return Refused(LayerText(number) + "the graph does not have the queries that the adapter expects");
    }
    MNEME_LLAMA_RETURN_IF_ERROR(BeginPart(*inputs.mask, tokens));
    if (checking_) MNEME_LLAMA_RETURN_IF_ERROR(CheckLayer(number, inputs, output));
  }
  for (size_t i = 0; i < part_runs_.size(); ++i) {
    const SequenceStep& step = plan_->steps[part_runs_[i].step];
    if (!step.visible && !settings_.always_overwrite) continue;
    const Timer timer(&attend_us_);
    MNEME_LLAMA_RETURN_IF_ERROR(AttendRun(number, inputs, part_runs_[i], windows_[i], output));
  }
  return AppendLayer(number, tokens);
}

Status GraphStep::AppendLayer(int32_t number, int64_t tokens) {
  if (!part_checked_ || keys_.tokens != tokens || values_.tokens != tokens) {
    return Refused(LayerText(number) + "the graph does not have the keys and values that the adapter expects");
  }
  for (const Run& run : part_runs_) {
    const Timer timer(&append_us_);
    MNEME_LLAMA_RETURN_IF_ERROR(AppendRun(number, run));
  }
  keys_.tokens = values_.tokens = queries_.tokens = -1;
  if (number == layers_.back()) {
    part_begin_ += tokens;
    EndPart();
  }
  return Status();
}

// They differ from the plan if llama.cpp reordered the batch.
Status GraphStep::CheckPositions(const ggml_tensor& rope) const {
  const int32_t* positions = nullptr;
  MNEME_LLAMA_RETURN_IF_ERROR(FindPositions(rope, &positions));
  const int64_t tokens = rope.ne[2];
  if (part_begin_ + tokens > static_cast<int64_t>(plan_->positions.size())) {
    return Refused("llama.cpp runs more tokens than the batch has");
  }
  for (int64_t i = 0; i < tokens; ++i) {
    if (positions[i] == plan_->positions[part_begin_ + i]) continue;
    return Refused("token " + std::to_string(part_begin_ + i) + " of the batch runs at position " +
                   std::to_string(positions[i]) + ", expected " + std::to_string(plan_->positions[part_begin_ + i]) +
                   "; was the batch reordered (kv_unified = false)?");
  }
  return Status();
}

// At the part's first layer: cuts the batch's runs to the part, and holds the mask against what the adapter believes
// the cache to contain. They differ if the host changed the cache.
Status GraphStep::BeginPart(const ggml_tensor& mask, int64_t tokens) {
  if (part_checked_) return Status();
  if (part_begin_ + tokens > static_cast<int64_t>(plan_->positions.size())) {
    return Refused("llama.cpp runs more tokens than the batch has");
  }
  for (const Run& run : plan_->runs) {
    const int64_t begin = std::max(run.begin, part_begin_) - part_begin_;
    const int64_t end = std::min(run.end, part_begin_ + tokens) - part_begin_;
    if (begin >= end || run.step < 0) continue;
    const SequenceStep& step = plan_->steps[run.step];
    LocalWindow window = ReadLocalWindow(mask, begin, end);
    const int64_t expected = plan_->positions[part_begin_ + begin] - step.sequence->first_position + 1;
    if (window.first_visible != expected) {
      return Refused("the cache holds " + std::to_string(window.first_visible) + " tokens of sequence " +
                     std::to_string(plan_->sequences[part_begin_ + begin]) + ", expected " + std::to_string(expected) +
                     "; its rows were changed without the adapter (mneme_llama_slide)");
    }
    part_runs_.push_back({begin, end, run.step});
    windows_.push_back(std::move(window));
  }
  part_checked_ = true;
  return Status();
}

Status GraphStep::AttendRun(int32_t number, const AttentionInputs& inputs, const Run& run, const LocalWindow& window,
                            const ggml_tensor& output) {
  const LayerShape& layer = shape_.layers[number];
  const SequenceStep& step = plan_->steps[run.step];
  const Sequence& sequence = *step.sequence;
  const int64_t tokens = run.end - run.begin;
  const int64_t row = static_cast<int64_t>(layer.q_heads) * layer.key_dim;

  positions_.resize(static_cast<size_t>(tokens));
  local_positions_.resize(static_cast<size_t>(tokens));
  for (int64_t i = 0; i < tokens; ++i) {
    const int64_t position = plan_->positions[part_begin_ + run.begin + i];
    positions_[i] = position + sequence.base;
    local_positions_[i] = position - sequence.first_position;
  }
  // The rotated queries carry the model's own factor (Gemma); the copied ones do not yet.
  float* unrotated = settings_.rotated() ? nullptr : queries_.data.data() + run.begin * row;
  if (unrotated != nullptr && inputs.query_factor != 1.0f) {
    for (int64_t i = 0; i < tokens * row; ++i) unrotated[i] *= inputs.query_factor;
  }
  const RowsView query(*inputs.query, run.begin, tokens);
  const RowsView memory_query(unrotated, tokens, layer.q_heads, layer.key_dim);
  const RowsView keys(*inputs.keys, window.first_cell, window.cells);
  const RowsView values(*inputs.values, window.first_cell, window.cells);
  const auto* data = reinterpret_cast<const float*>(static_cast<const char*>(output.data) + run.begin * output.nb[1]);
  const RowsView out(data, tokens, layer.q_heads, layer.value_dim);

  const auto fill = [&](std::vector<float>& heads, float value) {
    heads.assign(static_cast<size_t>(layer.q_heads), value);
    return heads.data();
  };
  const int64_t memory_end = sequence.MemoryEnd();
  const int64_t mask_offset = window.first_visible - 1;
  const mneme_snapshot* snapshot = step.snapshot;
  mneme_attend_args args = MNEME_ATTEND_ARGS_INIT;
  args.layer = number;
  args.query = query.get();
  args.memory_query = unrotated != nullptr ? memory_query.get() : nullptr;
  args.query_positions = positions_.data();
  args.query_local_positions = local_positions_.data();
  args.local_keys = keys.get();
  args.local_values = values.get();
  args.local_mask = window.causal ? MNEME_MASK_CAUSAL : MNEME_MASK_BITS;
  args.mask_offsets = &mask_offset;
  args.mask_bits = window.causal ? nullptr : window.bits.data();
  args.mask_bits_stride = window.stride;
  args.snapshots = &snapshot;
  args.memory_end = &memory_end;
  args.position_policy = settings_.position_policy;
  args.fusion = settings_.fusion;
  const HeadRules& rules = settings_.rules[number];
  args.top_k = rules.top_k.data();
  args.distance = rules.distance.data();
  args.memory_bias = rules.memory_bias.data();
  args.decay = rules.decay.data();
  args.gate = fill(gate_, settings_.gate);
  args.scale = fill(scale_, inputs.scale);
  args.decay_beyond = settings_.decay_beyond;
  args.output = out.get();
  mneme_memory* memory = sequence.memory;
  return FromEngine(mneme_attend(&memory, 1, &args));
}

Status GraphStep::AppendRun(int32_t number, const Run& run) {
  const LayerShape& layer = shape_.layers[number];
  const SequenceStep& step = plan_->steps[run.step];
  const Sequence& sequence = *step.sequence;
  if (!sequence.append) return Status();
  // Tokens that a resume decodes once more are in the memory already.
  int64_t begin = run.begin;
  while (begin < run.end && plan_->positions[part_begin_ + begin] + sequence.base < step.next_token) ++begin;
  const int64_t tokens = run.end - begin;
  if (tokens == 0) return Status();
  const RowsView keys(keys_.data.data() + begin * layer.kv_heads * layer.key_dim, tokens, layer.kv_heads,
                      layer.key_dim);
  const RowsView values(values_.data.data() + begin * layer.kv_heads * layer.value_dim, tokens, layer.kv_heads,
                        layer.value_dim);
  mneme_memory_append_args args = MNEME_MEMORY_APPEND_ARGS_INIT;
  args.layer = number;
  args.keys = keys.get();
  args.values = values.get();
  args.token_ids = number == layers_.front() ? token_ids_ + part_begin_ + begin : nullptr;
  return FromEngine(mneme_memory_append(sequence.memory, &args));
}

}  // namespace mneme::llama
