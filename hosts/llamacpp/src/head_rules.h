// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_HOSTS_LLAMACPP_SRC_HEAD_RULES_H_
#define MNEME_HOSTS_LLAMACPP_SRC_HEAD_RULES_H_

#include <cstdint>
#include <vector>

#include "hosts/llamacpp/include/mneme_llama.h"
#include "hosts/llamacpp/src/model_shape.h"
#include "hosts/llamacpp/src/status.h"

namespace mneme::llama {

// How the query heads of one layer retrieve. [q_heads] each
struct HeadRules {
  std::vector<int64_t> top_k;
  std::vector<float> distance;
  std::vector<float> memory_bias;
  std::vector<float> decay;
};

// The options' rules of each layer of the model; empty for layers without a memory.
// Errors: InvalidArgument for rules of other layers, of another number of heads or out of range.
Status MakeHeadRules(const mneme_llama_options& options, const ModelShape& shape, const std::vector<int32_t>& layers,
                     std::vector<HeadRules>* rules);

}  // namespace mneme::llama

#endif  // MNEME_HOSTS_LLAMACPP_SRC_HEAD_RULES_H_
