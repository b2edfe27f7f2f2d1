// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_TESTS_MEMORY_ATTEND_CALL_H_
#define MNEME_TESTS_MEMORY_ATTEND_CALL_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "memory/attend/attend.h"
#include "memory/attend/search.h"
#include "tests/memory/testing.h"

namespace mneme {

// One sequence of a call and what its memory must hold.
struct SequenceCase {
  Memory* memory = nullptr;
  const Oracle* oracle = nullptr;  // as of the snapshot, where there is one
  const Snapshot* snapshot = nullptr;
  int64_t queries = 1;
  int64_t locals = 0;
  int64_t memory_begin = 0;
  int64_t memory_end = -1;
};

struct AttendCase {
  LayerCard layer;
  std::vector<SequenceCase> sequences;
  std::vector<HeadRule> heads;
  PositionPolicy policy = PositionPolicy::kAsStored;
  Fusion fusion = Fusion::kJoint;
  LocalMask::Kind mask = LocalMask::Kind::kCausal;
  int64_t window = 0;
  float decay_beyond = 1;
  bool normalise_query = false;
  bool own_positions = false;  // query positions given, not those that follow from the lengths
  DType query_dtype = DType::kF32;
  DType local_dtype = DType::kF32;
  DType output_dtype = DType::kF32;
  // Logits are exact in f32 (small whole numbers), so that what is retrieved must be the reference's to the last tie.
  bool exact = false;
  // An index may miss rows: as many as wanted, visible, rightly scored and rightly fused, but not the best.
  bool approximate = false;

  // Every head with the layer's scale and this top_k.
  void SetTopK(int64_t k);
};

// A call over one memory of the card's layer number `layer`, with heads that differ in decay and bias; all but the
// first layer have a soft cap. The sequence has no memory yet.
AttendCase MixedHeads(const ModelCard& card, size_t layer, int64_t queries, PositionPolicy policy);

struct AttendResult {
  std::vector<float> output, log_sum_exp, memory_mass, scores;
  std::vector<int64_t> tokens;
  bool operator==(const AttendResult& other) const;  // bit for bit
};

// A call of Attend with random queries and local rows.
class AttendCall {
 public:
  AttendCall(TestRandom& random, const AttendCase& given);

  // The same call over other memories (of the same lengths).
  void SetMemory(size_t sequence, Memory* memory, const Snapshot* snapshot = nullptr);
  AttendRequest& request() { return request_; }
  const AttendResult& result() const { return result_; }
  int64_t query_count() const { return query_count_; }

  absl::Status Run(Executor& executor = InlineExecutor());
  // The result against the reference in double, sequence by sequence.
  void Check() const;
  // Run, and Search besides: the same rows. Then Check.
  void RunAndCheck(Executor& executor = InlineExecutor());

  // Query `query` (its number in the batch) of one head, and as the memory takes it.
  std::vector<double> Query(int64_t query, int64_t head) const { return query_->Row(query, head); }
  std::vector<double> LocalKey(int64_t row, int64_t head) const { return local_keys_->Row(row, head); }
  std::vector<double> LocalValue(int64_t row, int64_t head) const { return local_values_->Row(row, head); }

 private:
  void CheckOne(size_t sequence, int64_t query, int64_t head) const;
  void CheckSearch(Executor& executor) const;

  AttendCase case_;
  int64_t query_count_ = 0;
  int64_t stride_ = 0;
  std::unique_ptr<OwnedTensor> query_, memory_query_, local_keys_, local_values_;
  std::vector<Sequence> sequences_;
  std::vector<int64_t> positions_, local_positions_;
  std::vector<uint8_t> mask_bits_;
  std::vector<char> output_bytes_;
  AttendRequest request_{case_.layer};
  AttendResult result_;
};

}  // namespace mneme

#endif  // MNEME_TESTS_MEMORY_ATTEND_CALL_H_
