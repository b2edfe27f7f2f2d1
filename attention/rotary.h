// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_ATTENTION_ROTARY_H_
#define MNEME_ATTENTION_ROTARY_H_

#include <cstdint>
#include <memory_resource>
#include <vector>

#include "base/model_card.h"

namespace mneme {

// Turns `row` (f32 [dim]) in place as rotary embedding does at `position`, magnitude included (see Rotary in
// base/model_card.h). Angles are reduced in double, so large positions keep their precision. kNone: nothing. Turning a
// query by p and a key by 0 gives the score of any pair of positions that are p apart.
void Rotate(const Rotary& rotary, double position, float* row);

// The same with the magnitude's square left on one side: turns a query by `distance` so that its product with an
// unrotated key equals that of both rotated, magnitude on both sides included.
void RotateQueryByDistance(const Rotary& rotary, double distance, float* query);

// Cosines and sines of one position or distance, magnitude included: what all rows turned alike share. Apply gives the
// same bits as the functions above. Once made it is immutable and thread-safe; it lies in `memory`, which outlives it.
class RotaryTurn {
 public:
  RotaryTurn() = default;  // turns nothing

  static RotaryTurn ByPosition(const Rotary& rotary, double position,
                               std::pmr::memory_resource* memory = std::pmr::get_default_resource());
  static RotaryTurn OfQueryByDistance(const Rotary& rotary, double distance,
                                      std::pmr::memory_resource* memory = std::pmr::get_default_resource());

  void Apply(float* row) const;

 private:
  RotaryTurn(const Rotary& rotary, double position, float magnitude, std::pmr::memory_resource* memory);

  RotaryLayout layout_ = RotaryLayout::kNone;
  int64_t pairs_ = 0;
  std::pmr::vector<float> cosines_and_sines_;  // kHalves: all cosines, then all sines; kInterleaved: pair by pair
};

}  // namespace mneme

#endif  // MNEME_ATTENTION_ROTARY_H_
