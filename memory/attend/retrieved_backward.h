// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_MEMORY_ATTEND_RETRIEVED_BACKWARD_H_
#define MNEME_MEMORY_ATTEND_RETRIEVED_BACKWARD_H_

#include <cstdint>
#include <memory_resource>
#include <vector>

#include "attention/rotary.h"
#include "memory/attend/reported_rows.h"
#include "memory/attend/request.h"

namespace mneme {

// Attention over the retrieved rows of the query heads that share one KV head, forward and back, one (query, head) at a
// time. Belongs to one thread.
class RetrievedBackward {
 public:
  // Takes all bytes that it needs from `arena`. `rows` and `arena` outlive the object.
  RetrievedBackward(const ReportedRows& rows, int64_t kv_head, std::pmr::memory_resource* arena);
  RetrievedBackward(const RetrievedBackward&) = delete;
  RetrievedBackward& operator=(const RetrievedBackward&) = delete;

  // Attends to the rows of one (query, head), with the bits of the forward pass. Returns: the log-sum-exp.
  float Attend(int64_t query, int64_t head);
  const float* output() const { return output_.data(); }  // [value_dim], of the last Attend

  // What the gradients of one (query, head) are added to.
  struct Sums {
    float* memory_query;  // [key_dim], with respect to the memory query before normalisation and rotation
    double memory_bias = 0;
    double scale = 0;
  };
  // Adds the gradients of what the last Attend computed. With p_j the weight of row j in the softmax, the gradient with
  // respect to its logit is p_j (output_gradient · v_j - offset).
  void AddGradients(const float* output_gradient, float offset, Sums& sums);

 private:
  struct Row {
    const VisibleRows* owner;
    int64_t number;       // in its owner
    double distance = 0;  // kClamped
    bool near = false;    // kClamped: it is nearer than the head's distance, so it has a rotation of its own
    float slope = 1;      // derivative of the logit with respect to the score (the soft cap's)
  };

  // Adds a row to rows_, keys_ and values_, and prefetches its key and value.
  void Locate(int64_t token);
  // Returns: the dot product of row i, which is near, with the query that its own distance has rotated.
  float DotOfNearRow(size_t i);
  // Adds the sum of weights times keys, rotated back, to rotated_back_.
  void AddKeys();
  // Takes rotated_back_ as the gradient with respect to the normalised query and adds that with respect to the query.
  void AddThroughNormalisation(float* gradient) const;
  // Rotates a gradient back as the policy has rotated the query.
  void RotateBack(float* gradient) const;

  const ReportedRows& reported_;
  const RetrieveRequest& request_;
  const Sequence& sequence_;
  const DType stored_;
  const int64_t kv_head_;
  int64_t query_ = 0, head_ = 0;  // of the last Attend
  float log_sum_exp_ = 0;
  std::pmr::vector<RotaryTurn> turns_;  // [group], by each head's distance; empty: the policy has none
  std::pmr::vector<Row> rows_;
  std::pmr::vector<float> dots_, logits_, weights_, products_;  // [rows]
  std::pmr::vector<const char*> keys_, values_;                 // [rows]
  std::pmr::vector<float> output_;                              // [value_dim]
  std::pmr::vector<float> rotated_back_, one_key_;              // [key_dim]
};

}  // namespace mneme

#endif  // MNEME_MEMORY_ATTEND_RETRIEVED_BACKWARD_H_
