// SPDX-License-Identifier: Apache-2.0
#include "memory/attend/tile_backward.h"

#include <algorithm>
#include <cmath>
#include <memory_resource>
#include <optional>
#include <vector>

#include "attention/local_backward.h"
#include "attention/state.h"
#include "base/scratch.h"
#include "memory/attend/retrieved_backward.h"

namespace mneme {
namespace {

double Dot(const float* a, const float* b, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += static_cast<double>(a[i]) * static_cast<double>(b[i]);
  return sum;
}

double Sigmoid(double x) {
  return 1 / (1 + std::exp(-x));
}

// How the loss changes with one part: the retrieved or the local rows. The gradient with respect to the part's output
// is factor * output_gradient, and that with respect to the logit of row j, which has weight p_j in the part's softmax,
// is p_j (factor * output_gradient · v_j - offset). These are a and t of docs/design/attention.md.
struct PartUpstream {
  double factor = 0;
  double offset = 0;
};

// One (query, head)'s attention over a part.
struct PartState {
  double log_sum_exp;
  double product;  // output_gradient · output
};

// Of both parts of one (query, head).
struct Upstream {
  PartUpstream memory, local;
  double gate = 0;  // the gradient with respect to the gate
};

// Divides the output's gradient between the two parts. log_sum_exp_gradient: with respect to the log-sum-exp that
// Attend returns.
Upstream Divide(Fusion fusion, double gate, const PartState& memory, const PartState& local,
                double log_sum_exp_gradient) {
  Upstream upstream;
  const double greatest = std::max(memory.log_sum_exp, local.log_sum_exp);
  if (greatest == static_cast<double>(kEmptyLogSumExp)) return upstream;
  const double memory_mass = std::exp(memory.log_sum_exp - greatest),
               local_mass = std::exp(local.log_sum_exp - greatest);
  const double of_memory = memory_mass / (memory_mass + local_mass), of_local = local_mass / (memory_mass + local_mass);
  const double by_memory = of_memory * log_sum_exp_gradient, by_local = of_local * log_sum_exp_gradient;
  if (fusion == Fusion::kGated) {
    const double open = Sigmoid(gate), shut = Sigmoid(-gate);
    upstream.memory = {open, open * memory.product - by_memory};
    upstream.local = {shut, shut * local.product - by_local};
    upstream.gate = open * shut * (memory.product - local.product);
    return upstream;
  }
  // One softmax over both parts, or over the one that is not empty.
  const double product = of_memory * memory.product + of_local * local.product;
  upstream.memory = {of_memory, of_memory * product - by_memory};
  upstream.local = {of_local, of_local * product - by_local};
  return upstream;
}

class TileBackward {
 public:
  TileBackward(const AttendBackwardRequest& request, const Sequence& sequence, const ReportedRows* rows,
               const Tile& tile, const TileSums& sums, std::pmr::memory_resource* arena)
      : request_(request),
        layer_(request.forward.retrieve.layer),
        sequence_(sequence),
        tile_(tile),
        sums_(sums),
        outputs_(arena),
        log_sum_exps_(arena),
        output_gradients_(arena),
        offsets_(arena),
        query_gradients_(arena),
        memory_query_gradients_(arena),
        upstream_(static_cast<size_t>(layer_.value_dim), arena),
        scales_(static_cast<size_t>(layer_.group()), arena) {
    const auto slots = static_cast<size_t>(tile.queries() * layer_.group());
    outputs_.resize(slots * static_cast<size_t>(layer_.value_dim));
    output_gradients_.resize(outputs_.size());
    log_sum_exps_.resize(slots);
    offsets_.resize(slots);
    if (WantsQuery()) query_gradients_.resize(slots * static_cast<size_t>(layer_.key_dim));
    if (WantsMemoryQuery()) memory_query_gradients_.resize(slots * static_cast<size_t>(layer_.key_dim));
    if (rows != nullptr) retrieved_.emplace(*rows, tile.kv_head, arena);
  }

  void Run() {
    std::fill_n(sums_.heads, layer_.group(), HeadGradients());
    AttendLocalTile(request_.forward, sequence_, tile_, {outputs_.data(), log_sum_exps_.data()});
    for (int64_t query = 0; query < tile_.queries(); ++query) {
      for (int64_t g = 0; g < layer_.group(); ++g) BackwardOfSlot(query, g);
    }
    BackwardOfLocal();
    WriteQueries();
  }

 private:
  bool WantsQuery() const { return request_.query.data != nullptr; }
  bool WantsMemoryQuery() const {
    return request_.memory_query.data != nullptr || (WantsQuery() && request_.memory_query_is_query);
  }
  int64_t HeadOf(int64_t g) const { return tile_.kv_head * layer_.group() + g; }
  int64_t TokenOf(int64_t query) const { return sequence_.query_begin + tile_.query_begin + query; }

  // Retrieved rows, fusion and gate of one (query, head). Stores output_gradients_ and offsets_ for BackwardOfLocal.
  void BackwardOfSlot(int64_t query, int64_t g) {
    const auto slot = static_cast<size_t>(query * layer_.group() + g);
    const auto value_dim = static_cast<size_t>(layer_.value_dim);
    const int64_t head = HeadOf(g), token = TokenOf(query);
    const HeadRule& rule = request_.forward.retrieve.heads[static_cast<size_t>(head)];
    ConvertToF32(request_.output_gradient.dtype, request_.output_gradient.Row(token, head), upstream_.data(),
                 value_dim);
    PartState memory = {static_cast<double>(kEmptyLogSumExp), 0};
    if (retrieved_.has_value()) {
      memory.log_sum_exp = static_cast<double>(retrieved_->Attend(tile_.query_begin + query, head));
      memory.product = Dot(upstream_.data(), retrieved_->output(), layer_.value_dim);
    }
    const PartState local = {static_cast<double>(log_sum_exps_[slot]),
                             Dot(upstream_.data(), outputs_.data() + slot * value_dim, layer_.value_dim)};
    const float* const of_lse = request_.log_sum_exp_gradient;
    const double by_lse = of_lse != nullptr ? static_cast<double>(of_lse[token * layer_.query_heads + head]) : 0;
    const Upstream divided = Divide(request_.forward.fusion, static_cast<double>(rule.gate), memory, local, by_lse);
    sums_.heads[g].gate += divided.gate;

    float* const local_gradient = output_gradients_.data() + slot * value_dim;
    Multiply(divided.local.factor, local_gradient);
    offsets_[slot] = static_cast<float>(divided.local.offset);
    if (!retrieved_.has_value()) return;
    Multiply(divided.memory.factor, upstream_.data());
    RetrievedBackward::Sums sums = {.memory_query = WantsMemoryQuery() ? memory_query_gradients_.data() +
                                                                             slot * static_cast<size_t>(layer_.key_dim)
                                                                       : nullptr};
    retrieved_->AddGradients(upstream_.data(), static_cast<float>(divided.memory.offset), sums);
    sums_.heads[g].memory_bias += sums.memory_bias;
    sums_.heads[g].scale += sums.scale;
  }

  // result [value_dim] = factor * upstream_.
  void Multiply(double factor, float* result) const {
    const auto rounded = static_cast<float>(factor);
    for (size_t i = 0; i < upstream_.size(); ++i) result[i] = rounded * upstream_[i];
  }

  void BackwardOfLocal() {
    if (!HasLocalRows(request_.forward, sequence_)) return;
    const int64_t rows = sequence_.local_end - sequence_.local_begin;
    if (sums_.local_keys != nullptr) std::fill_n(sums_.local_keys, rows * PaddedDim(layer_.key_dim), 0.0f);
    if (sums_.local_values != nullptr) std::fill_n(sums_.local_values, rows * PaddedDim(layer_.value_dim), 0.0f);
    if (!WantsQuery() && sums_.local_keys == nullptr && sums_.local_values == nullptr && request_.scale == nullptr) {
      return;
    }
    Scratch scratch;
    const LocalTile local(request_.forward, sequence_, tile_, &scratch);
    AttendLocalBackward(local.problem(), {log_sum_exps_.data(), output_gradients_.data(), offsets_.data()},
                        {.queries = WantsQuery() ? query_gradients_.data() : nullptr,
                         .keys = sums_.local_keys,
                         .values = sums_.local_values,
                         .scales = scales_.data()});
    for (size_t g = 0; g < scales_.size(); ++g) sums_.heads[g].scale += scales_[g];
  }

  void WriteQueries() {
    const auto key_dim = static_cast<size_t>(layer_.key_dim);
    const auto write = [&](const MutableRowTensor& tensor, std::pmr::vector<float>& gradients) {
      for (int64_t query = 0; query < tile_.queries(); ++query) {
        for (int64_t g = 0; g < layer_.group(); ++g) {
          ConvertFromF32(gradients.data() + static_cast<size_t>(query * layer_.group() + g) * key_dim, tensor.dtype,
                         tensor.Row(TokenOf(query), HeadOf(g)), key_dim);
        }
      }
    };
    if (WantsQuery() && request_.memory_query_is_query) {
      for (size_t i = 0; i < query_gradients_.size(); ++i) query_gradients_[i] += memory_query_gradients_[i];
    }
    if (WantsQuery()) write(request_.query, query_gradients_);
    if (request_.memory_query.data != nullptr) write(request_.memory_query, memory_query_gradients_);
  }

  const AttendBackwardRequest& request_;
  const LayerCard& layer_;
  const Sequence& sequence_;
  const Tile tile_;
  const TileSums& sums_;
  std::optional<RetrievedBackward> retrieved_;
  std::pmr::vector<float> outputs_, log_sum_exps_;      // [queries][group], of local attention
  std::pmr::vector<float> output_gradients_, offsets_;  // the same, see LocalUpstream
  std::pmr::vector<float> query_gradients_, memory_query_gradients_;
  std::pmr::vector<float> upstream_;  // [value_dim]
  std::pmr::vector<double> scales_;   // [group], of local attention
};

}  // namespace

void BackwardOfTile(const AttendBackwardRequest& request, const Sequence& sequence, const ReportedRows* rows,
                    const Tile& tile, const TileSums& sums) {
  Scratch scratch;
  TileBackward(request, sequence, rows, tile, sums, &scratch).Run();
}

}  // namespace mneme
