// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_HOSTS_LLAMACPP_SRC_CARD_H_
#define MNEME_HOSTS_LLAMACPP_SRC_CARD_H_

#include <memory>
#include <string>
#include <vector>

#include "hosts/llamacpp/src/model_shape.h"
#include "hosts/llamacpp/src/status.h"
#include "mneme.h"

namespace mneme::llama {

struct CardDeleter {
  void operator()(mneme_card* card) const { mneme_card_release(card); }
};
using CardPtr = std::unique_ptr<mneme_card, CardDeleter>;

// The layers that shall have a memory: `wanted`, or every global one if it is empty. Ascending.
// Refused: numbers out of order or that the model does not have, sliding-window layers, layers with a refusal.
Status ChooseLayers(const ModelShape& shape, const std::vector<int32_t>& wanted, std::vector<int32_t>* layers);

Status MakeCard(const ModelShape& shape, const std::string& fingerprint, const std::vector<int32_t>& layers,
                CardPtr* card);

}  // namespace mneme::llama

#endif  // MNEME_HOSTS_LLAMACPP_SRC_CARD_H_
