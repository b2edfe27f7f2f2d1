// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_ATTENTION_ROTARY_H_
#define MNEME_ATTENTION_ROTARY_H_

#include <cstdint>
#include <memory_resource>
#include <vector>

#include "base/model_card.h"

namespace mneme {

// Applies rotary embedding (RoFormer, Su et al. 2021) at `position` to `row`, f32 [dim], in place; see Rotary in
// base/model_card.h for the layout and the magnitude. Angles are computed in double, so large positions keep their
// precision. Does nothing for RotaryLayout::kNone. The score of a query and a key depends on the difference of their
// positions only.
void Rotate(const Rotary& rotary, double position, float* row);

// Rotates a query by `distance`, so that its product with an unrotated key equals the product of a query and a key that
// are both rotated and stand so far apart. The query takes the magnitude of both.
void RotateQueryByDistance(const Rotary& rotary, double distance, float* query);

// The cosines and sines of one position or distance, times the magnitude, for rotating many rows. Apply gives the same
// bits as the functions above. Immutable and thread-safe. It lies in `memory`, which must outlive it.
class RotaryTurn {
 public:
  RotaryTurn() = default;  // Apply does nothing

  static RotaryTurn ByPosition(const Rotary& rotary, double position,
                               std::pmr::memory_resource* memory = std::pmr::get_default_resource());
  static RotaryTurn OfQueryByDistance(const Rotary& rotary, double distance,
                                      std::pmr::memory_resource* memory = std::pmr::get_default_resource());

  void Apply(float* row) const;
  // Applies the transpose: where a query was rotated by Apply, its gradient goes back by this.
  void ApplyTransposed(float* gradient) const;

 private:
  RotaryTurn(const Rotary& rotary, double position, float magnitude, std::pmr::memory_resource* memory);
  template <bool kTransposed>
  void ApplyTo(float* row) const;

  RotaryLayout layout_ = RotaryLayout::kNone;
  int64_t pairs_ = 0;
  std::pmr::vector<float>
      cosines_and_sines_;  // kHalves: all cosines, then all sines; kInterleaved: cosine and sine of each pair
};

}  // namespace mneme

#endif  // MNEME_ATTENTION_ROTARY_H_
