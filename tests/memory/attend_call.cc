// SPDX-License-Identifier: Apache-2.0
#include "tests/memory/attend_call.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <set>

#include "attention/reference.h"
#include "index/top_k.h"

namespace mneme {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

reference::PositionPolicy PolicyOf(PositionPolicy policy) {
  switch (policy) {
    case PositionPolicy::kAsStored: return reference::PositionPolicy::kNone;
    case PositionPolicy::kFixedDistance: return reference::PositionPolicy::kFixedDistance;
    case PositionPolicy::kWindowStart: return reference::PositionPolicy::kWindowStart;
    case PositionPolicy::kClamped: return reference::PositionPolicy::kClamped;
  }
  return reference::PositionPolicy::kNone;
}

template <typename T>
bool SameBits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

}  // namespace

void AttendCase::SetTopK(int64_t k) {
  heads.assign(static_cast<size_t>(layer.query_heads), HeadRule{});
  for (HeadRule& head : heads) {
    head.top_k = k;
    head.scale = layer.scale;
  }
}

AttendCase MixedHeads(const ModelCard& card, size_t layer, int64_t queries, PositionPolicy policy) {
  AttendCase made;
  made.layer = card.layers[layer];
  made.layer.soft_cap = layer == 0 ? 0.0f : 8.0f;
  made.sequences = {{nullptr, nullptr, nullptr, queries, 3, 0, -1}};
  made.policy = policy;
  made.decay_beyond = 50;
  made.SetTopK(24);
  for (size_t head = 0; head < made.heads.size(); ++head) {
    made.heads[head].distance = 300;
    made.heads[head].decay = head % 3 == 1 ? 0.5f : 0.0f;
    made.heads[head].memory_bias = head % 2 == 0 ? 0.75f : 0.0f;
  }
  return made;
}

bool AttendResult::operator==(const AttendResult& other) const {
  return SameBits(output, other.output) && SameBits(log_sum_exp, other.log_sum_exp) &&
         SameBits(memory_mass, other.memory_mass) && SameBits(scores, other.scores) && tokens == other.tokens;
}

AttendCall::AttendCall(TestRandom& random, const AttendCase& given) : case_(given) {
  const LayerCard& layer = case_.layer;
  int64_t local_count = 0;
  for (const SequenceCase& sequence : case_.sequences) {
    Sequence made;
    made.memory = sequence.memory;
    made.snapshot = sequence.snapshot;
    made.query_begin = query_count_;
    made.query_end = query_count_ += sequence.queries;
    made.local_begin = local_count;
    made.local_end = local_count += sequence.locals;
    made.memory_begin = sequence.memory_begin;
    made.memory_end = sequence.memory_end;
    made.mask_offset = sequence.locals - sequence.queries;
    sequences_.push_back(made);
  }
  const auto element = [&] { return case_.exact ? static_cast<float>(random.Between(-2, 2)) : random.Normal(1.5f); };
  const int64_t heads = layer.query_heads;
  query_ = std::make_unique<OwnedTensor>(random, case_.query_dtype, query_count_, heads, layer.key_dim, element);
  memory_query_ = std::make_unique<OwnedTensor>(random, case_.query_dtype, query_count_, heads, layer.key_dim, element);
  local_keys_ =
      std::make_unique<OwnedTensor>(random, case_.local_dtype, local_count, layer.kv_heads, layer.key_dim, element);
  local_values_ = std::make_unique<OwnedTensor>(random, case_.local_dtype, local_count, layer.kv_heads, layer.value_dim,
                                                [&] { return random.Normal(); });
  for (const Sequence& sequence : sequences_) {
    for (int64_t query = sequence.query_begin; query < sequence.query_end; ++query) {
      positions_.push_back(random.Between(0, 4000));
      local_positions_.push_back(random.Between(0, 300));
    }
  }
  const int64_t bits_stride = (local_count + 7) / 8 + 1;
  mask_bits_.resize(static_cast<size_t>(query_count_ * bits_stride));
  for (uint8_t& byte : mask_bits_) byte = static_cast<uint8_t>(random.Between(0, 255));

  for (const HeadRule& head : case_.heads) stride_ = std::max(stride_, head.top_k);
  const auto slots = static_cast<size_t>(query_count_ * heads);
  output_bytes_.resize(slots * static_cast<size_t>(layer.value_dim) * DTypeSize(case_.output_dtype));
  result_.log_sum_exp.resize(slots);
  result_.memory_mass.resize(slots);
  result_.tokens.resize(slots * static_cast<size_t>(stride_));
  result_.scores.resize(result_.tokens.size());

  request_.retrieve.memory_query = memory_query_->view();
  request_.retrieve.normalise_query = case_.normalise_query;
  request_.retrieve.policy = case_.policy;
  request_.retrieve.query_positions = case_.own_positions ? positions_.data() : nullptr;
  request_.retrieve.query_local_positions = local_positions_.data();
  request_.retrieve.use_memory_bias = case_.fusion == Fusion::kJoint;
  request_.retrieve.decay_beyond = case_.decay_beyond;
  request_.retrieve.heads = case_.heads;
  request_.retrieve.sequences = sequences_;
  request_.query = query_->view();
  if (local_count > 0) {
    request_.local_keys = local_keys_->view();
    request_.local_values = local_values_->view();
  }
  request_.mask.kind = case_.mask;
  request_.mask.window = case_.window;
  if (case_.mask == LocalMask::Kind::kBits) {
    request_.mask.bits = mask_bits_.data();
    request_.mask.bits_stride = bits_stride;
  }
  request_.fusion = case_.fusion;
  request_.output = {output_bytes_.data(), case_.output_dtype,      query_count_,   heads,
                     layer.value_dim,      heads * layer.value_dim, layer.value_dim};
  request_.log_sum_exp = result_.log_sum_exp.data();
  request_.memory_mass = result_.memory_mass.data();
  request_.retrieved_tokens = result_.tokens.data();
  request_.retrieved_scores = result_.scores.data();
  request_.retrieved_stride = stride_;
}

void AttendCall::SetMemory(size_t sequence, Memory* memory, const Snapshot* snapshot) {
  sequences_[sequence].memory = memory;
  sequences_[sequence].snapshot = snapshot;
}

absl::Status AttendCall::Run(Executor& executor) {
  std::fill(output_bytes_.begin(), output_bytes_.end(), '\x7f');
  std::fill(result_.tokens.begin(), result_.tokens.end(), int64_t{-77});
  const absl::Status status = Attend(request_, executor);
  const size_t size = output_bytes_.size() / DTypeSize(case_.output_dtype);
  result_.output.resize(size);
  ConvertToF32(case_.output_dtype, output_bytes_.data(), result_.output.data(), size);
  return status;
}

void AttendCall::Check() const {
  for (size_t sequence = 0; sequence < sequences_.size(); ++sequence) {
    for (int64_t query = sequences_[sequence].query_begin; query < sequences_[sequence].query_end; ++query) {
      for (int64_t head = 0; head < case_.layer.query_heads; ++head) {
        SCOPED_TRACE(absl::StrCat("sequence ", sequence, " query ", query, " head ", head));
        CheckOne(sequence, query, head);
        if (::testing::Test::HasFatalFailure()) return;
      }
    }
  }
}

void AttendCall::CheckOne(size_t number, int64_t query, int64_t head) const {
  const LayerCard& layer = case_.layer;
  const Sequence& sequence = sequences_[number];
  const Oracle* oracle = case_.sequences[number].oracle;
  const HeadRule& rule = case_.heads[static_cast<size_t>(head)];
  const auto kv_head = static_cast<size_t>(head / layer.group());
  const int64_t slot = query * layer.query_heads + head;

  reference::Problem problem;
  problem.query = query_->Row(query, head);
  problem.memory_query = memory_query_->Row(query, head);
  if (case_.normalise_query) {
    const double norm = std::sqrt(reference::Dot(problem.memory_query, problem.memory_query) + 1e-6);
    for (double& x : problem.memory_query) x /= norm;
  }
  problem.value_dim = layer.value_dim;
  problem.rotary = layer.rotary;
  problem.policy = PolicyOf(case_.policy);
  problem.distance = case_.policy == PositionPolicy::kWindowStart
                         ? static_cast<double>(local_positions_[static_cast<size_t>(query)])
                         : static_cast<double>(rule.distance);
  problem.scale = static_cast<double>(rule.scale);
  problem.soft_cap = static_cast<double>(layer.soft_cap);
  problem.memory_bias = case_.fusion == Fusion::kJoint ? static_cast<double>(rule.memory_bias) : 0;
  problem.decay = static_cast<double>(rule.decay);
  problem.decay_beyond = static_cast<double>(case_.decay_beyond);
  problem.gate = static_cast<double>(rule.gate);
  problem.fusion = case_.fusion;
  const int64_t queries = sequence.query_end - sequence.query_begin;
  const int64_t locals = sequence.local_end - sequence.local_begin;
  for (int64_t row = 0; row < locals; ++row) {
    problem.local_keys.push_back(local_keys_->Row(sequence.local_begin + row, static_cast<int64_t>(kv_head)));
    problem.local_values.push_back(local_values_->Row(sequence.local_begin + row, static_cast<int64_t>(kv_head)));
    LocalMask mask = request_.mask;
    mask.offset = sequence.mask_offset;
    if (mask.bits != nullptr) mask.bits += sequence.query_begin * mask.bits_stride;
    problem.local_visible.push_back(mask.Visible(query - sequence.query_begin, row));
  }
  if (oracle != nullptr) {
    const auto at = static_cast<size_t>(oracle->card().FindLayer(layer.layer));
    const int64_t end = sequence.memory_end < 0 ? oracle->End(at) : std::min(sequence.memory_end, oracle->End(at));
    problem.query_position = case_.own_positions
                                 ? positions_[static_cast<size_t>(query)]
                                 : end + std::max<int64_t>(0, locals - queries) + query - sequence.query_begin;
    for (int64_t token = sequence.memory_begin; token < end; ++token) {
      if (!oracle->Holds(token)) continue;
      problem.memory_keys.push_back(oracle->At(at, token).keys[kv_head]);
      problem.memory_values.push_back(oracle->At(at, token).values[kv_head]);
      problem.memory_token.push_back(token);
      problem.memory_position.push_back(oracle->Position(token));
      problem.memory_pinned.push_back(oracle->Pinned(token));
    }
  }

  // All rows ranked; what was retrieved must be the first of them up to rounding.
  const auto visible = static_cast<int64_t>(problem.memory_token.size());
  const bool uses_memory = case_.fusion != Fusion::kLocalOnly;
  const int64_t wanted = uses_memory ? std::min(rule.top_k, visible) : 0;
  problem.top_k = visible;
  const reference::Result all = reference::Attend(problem);
  const int64_t* tokens = result_.tokens.data() + slot * stride_;
  const float* scores = result_.scores.data() + slot * stride_;
  std::map<int64_t, double> logit_of;
  double largest = 1;
  for (size_t i = 0; i < all.tokens.size(); ++i) {
    logit_of[all.tokens[i]] = all.logits[i];
    largest = std::max(largest, std::fabs(all.logits[i]));
  }
  const double tolerance = case_.exact ? 0 : 3e-5 * largest;
  std::set<int64_t> retrieved;
  for (int64_t i = 0; i < stride_; ++i) {
    if (i >= wanted) {
      ASSERT_EQ(tokens[i], -1) << "place " << i;
      ASSERT_EQ(static_cast<double>(scores[i]), -kInfinity);
      continue;
    }
    ASSERT_TRUE(logit_of.contains(tokens[i])) << "place " << i << ": token " << tokens[i] << " is not visible";
    ASSERT_TRUE(retrieved.insert(tokens[i]).second) << "token " << tokens[i] << " twice";
    ASSERT_NEAR(static_cast<double>(scores[i]), logit_of[tokens[i]], tolerance) << "token " << tokens[i];
    if (case_.exact) {
      ASSERT_EQ(tokens[i], all.tokens[static_cast<size_t>(i)]) << "place " << i;
    } else if (!case_.approximate) {
      // The i-th best by f32 is within rounding of the i-th best.
      ASSERT_NEAR(logit_of[tokens[i]], all.logits[static_cast<size_t>(i)], 2 * tolerance) << "place " << i;
    }
    if (i > 0) {
      ASSERT_TRUE(Better({scores[i - 1], tokens[i - 1]}, {scores[i], tokens[i]})) << "places " << i - 1 << ", " << i;
    }
  }

  // The softmax over exactly these.
  reference::Problem chosen = problem;
  chosen.top_k = wanted;
  chosen.memory_keys.clear();
  chosen.memory_values.clear();
  chosen.memory_token.clear();
  chosen.memory_position.clear();
  chosen.memory_pinned.clear();
  for (int64_t i = 0; i < visible; ++i) {
    const auto row = static_cast<size_t>(i);
    if (!retrieved.contains(problem.memory_token[row])) continue;
    chosen.memory_keys.push_back(problem.memory_keys[row]);
    chosen.memory_values.push_back(problem.memory_values[row]);
    chosen.memory_token.push_back(problem.memory_token[row]);
    chosen.memory_position.push_back(problem.memory_position[row]);
    chosen.memory_pinned.push_back(problem.memory_pinned[row]);
  }
  const reference::Result result = reference::Attend(chosen);
  const double output_tolerance = (case_.output_dtype == DType::kF32   ? 0
                                   : case_.output_dtype == DType::kF16 ? 0x1p-10
                                                                       : 0x1p-7) +
                                  6e-5 * largest;
  double greatest = 1;
  for (const double x : result.state.output) greatest = std::max(greatest, std::fabs(x));
  for (int64_t i = 0; i < layer.value_dim; ++i) {
    ASSERT_NEAR(static_cast<double>(result_.output[static_cast<size_t>(slot * layer.value_dim + i)]),
                result.state.output[static_cast<size_t>(i)], output_tolerance * greatest)
        << "element " << i;
  }
  const auto lse = static_cast<double>(result_.log_sum_exp[static_cast<size_t>(slot)]);
  if (result.state.log_sum_exp == -kInfinity) {
    ASSERT_EQ(lse, -kInfinity);
  } else {
    ASSERT_NEAR(lse, result.state.log_sum_exp, 6e-5 * largest);
  }
  // A gate over an empty memory gives it no mass.
  const double mass = case_.fusion == Fusion::kGated && wanted == 0 ? 0 : result.memory_mass;
  ASSERT_NEAR(static_cast<double>(result_.memory_mass[static_cast<size_t>(slot)]), mass, 6e-5 * largest);
}

void AttendCall::CheckSearch(Executor& executor) const {
  const LayerCard& layer = case_.layer;
  const auto slots = static_cast<size_t>(query_count_ * layer.query_heads * stride_);
  std::vector<int64_t> tokens(slots, -77);
  std::vector<float> scores(slots), keys(slots * static_cast<size_t>(layer.key_dim), 77.0f),
      values(slots * static_cast<size_t>(layer.value_dim), 77.0f);
  SearchRequest search(request_.retrieve);
  search.top_k = stride_;
  search.tokens = tokens.data();
  search.scores = scores.data();
  search.keys = keys.data();
  search.values = values.data();
  ASSERT_OK(Search(search, executor));
  EXPECT_EQ(tokens, result_.tokens);
  EXPECT_TRUE(SameBits(scores, result_.scores));
  for (size_t sequence = 0; sequence < sequences_.size(); ++sequence) {
    const Oracle* oracle = case_.sequences[sequence].oracle;
    const auto first = static_cast<size_t>(sequences_[sequence].query_begin * layer.query_heads * stride_);
    const auto last = static_cast<size_t>(sequences_[sequence].query_end * layer.query_heads * stride_);
    for (size_t at = first; at < last; ++at) {
      const auto head = static_cast<int64_t>(at) / stride_ % layer.query_heads;
      std::vector<double> key(static_cast<size_t>(layer.key_dim)), value(static_cast<size_t>(layer.value_dim));
      if (tokens[at] >= 0) {
        const auto place = static_cast<size_t>(oracle->card().FindLayer(layer.layer));
        const Oracle::Row& row = oracle->At(place, tokens[at]);
        key = row.keys[static_cast<size_t>(head / layer.group())];
        value = row.values[static_cast<size_t>(head / layer.group())];
      }
      for (size_t i = 0; i < key.size(); ++i) ASSERT_EQ(static_cast<double>(keys[at * key.size() + i]), key[i]);
      for (size_t i = 0; i < value.size(); ++i) ASSERT_EQ(static_cast<double>(values[at * value.size() + i]), value[i]);
    }
  }
}

void AttendCall::RunAndCheck(Executor& executor) {
  ASSERT_OK(Run(executor));
  Check();
  if (case_.fusion != Fusion::kLocalOnly) CheckSearch(executor);
}

}  // namespace mneme
