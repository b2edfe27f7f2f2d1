// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_TESTS_CAPI_CALLS_H_
#define MNEME_TESTS_CAPI_CALLS_H_

#include <limits>
#include <vector>

#include "tests/capi/testing.h"

namespace mneme {

// A call of mneme_attend with every argument given: two queries of one sequence, five local rows, top-3. Tests spoil
// one thing and run it.
struct AttendCall {
  using Args = mneme_attend_args;
  explicit AttendCall(mneme_memory* memory);
  mneme_status Run() { return mneme_attend(memories_given, batch, given); }
  // Makes it a call for `n` sequences; the last gets all queries and local rows.
  void Batch(size_t n);
  bool OutputsUntouched() const;

  Tensor query{{2, kQueryHeads, kKeyDim}}, memory_query{{2, kQueryHeads, kKeyDim}};
  Tensor local_keys{{5, kKvHeads, kKeyDim}}, local_values{{5, kKvHeads, kValueDim}};
  std::vector<int64_t> query_offsets{0, 2}, query_positions{310, 311}, query_local_positions{3, 4};
  std::vector<int64_t> local_offsets{0, 5}, mask_offsets{3}, memory_begin{0}, memory_end{307};
  std::vector<uint8_t> mask_bits = std::vector<uint8_t>(2, 0xff);
  std::vector<const mneme_snapshot*> snapshots{nullptr};
  std::vector<int64_t> top_k = std::vector<int64_t>(kQueryHeads, 3);
  std::vector<float> distance = std::vector<float>(kQueryHeads, 100.0f), memory_bias = Zeros(), decay = Zeros(),
                     scale = std::vector<float>(kQueryHeads, 0.5f), gate = Zeros();
  Tensor output{{2, kQueryHeads, kValueDim}};
  Guarded<float> log_sum_exp{2 * kQueryHeads}, memory_mass{2 * kQueryHeads}, retrieved_scores{2 * kQueryHeads * 3};
  Guarded<int64_t> retrieved_tokens{2 * kQueryHeads * 3};
  Guarded<int32_t> statuses{2};

  std::vector<mneme_memory*> memories;
  mneme_memory* const* memories_given;
  size_t batch = 1;
  mneme_attend_args args = MNEME_ATTEND_ARGS_INIT;
  const mneme_attend_args* given = &args;

  static std::vector<float> Zeros() { return std::vector<float>(kQueryHeads, 0.0f); }
};

// The same for mneme_attend_backward: `forward` has run, and its fields can be spoilt, too.
struct AttendBackwardCall {
  using Args = mneme_attend_backward_args;
  explicit AttendBackwardCall(mneme_memory* memory);
  mneme_status Run() { return mneme_attend_backward(forward.memories_given, forward.batch, given); }
  bool OutputsUntouched() const;

  AttendCall forward;
  Tensor output_gradient{{2, kQueryHeads, kValueDim}};
  std::vector<float> log_sum_exp_gradient = std::vector<float>(2 * kQueryHeads, 0.5f);
  Tensor query_gradient{{2, kQueryHeads, kKeyDim}}, memory_query_gradient{{2, kQueryHeads, kKeyDim}};
  Tensor local_keys_gradient{{5, kKvHeads, kKeyDim}}, local_values_gradient{{5, kKvHeads, kValueDim}};
  Guarded<float> memory_bias_gradient{kQueryHeads}, gate_gradient{kQueryHeads}, scale_gradient{kQueryHeads};

  mneme_attend_backward_args args = MNEME_ATTEND_BACKWARD_ARGS_INIT;
  const mneme_attend_backward_args* given = &args;
};

// The same for mneme_search.
struct SearchCall {
  using Args = mneme_search_args;
  explicit SearchCall(mneme_memory* memory);
  mneme_status Run() { return mneme_search(memories_given, batch, given); }
  void Batch(size_t n);
  bool OutputsUntouched() const;

  Tensor query{{2, kQueryHeads, kKeyDim}};
  std::vector<int64_t> query_offsets{0, 2}, query_positions{310, 311}, query_local_positions{3, 4};
  std::vector<int64_t> memory_begin{0}, memory_end{307};
  std::vector<const mneme_snapshot*> snapshots{nullptr};
  std::vector<float> distance = std::vector<float>(kQueryHeads, 100.0f), decay = AttendCall::Zeros(),
                     scale = std::vector<float>(kQueryHeads, 0.5f);
  Guarded<int64_t> tokens{2 * kQueryHeads * 3};
  Guarded<float> scores{2 * kQueryHeads * 3};
  Tensor keys{{2, kQueryHeads, 3, kKeyDim}}, values{{2, kQueryHeads, 3, kValueDim}};

  std::vector<mneme_memory*> memories;
  mneme_memory* const* memories_given;
  size_t batch = 1;
  mneme_search_args args = MNEME_SEARCH_ARGS_INIT;
  const mneme_search_args* given = &args;
};

// The same for mneme_merge, which needs no memory: two tokens, three heads, values of four dims.
struct MergeCall {
  using Args = mneme_merge_args;
  explicit MergeCall(mneme_memory* = nullptr);
  mneme_status Run() { return mneme_merge(given); }
  bool OutputsUntouched() const { return output.Guarded() && log_sum_exp.Untouched(); }

  Tensor a{{2, 3, 4}}, b{{2, 3, 4}}, output{{2, 3, 4}};
  std::vector<float> a_lse = std::vector<float>(6, 1.0f), b_lse = std::vector<float>(6, 2.0f), gate{0, 1, 2};
  Guarded<float> log_sum_exp{6};
  mneme_merge_args args = MNEME_MERGE_ARGS_INIT;
  const mneme_merge_args* given = &args;
};

}  // namespace mneme

#endif  // MNEME_TESTS_CAPI_CALLS_H_
