// SPDX-License-Identifier: Apache-2.0
#include "attention/rotary.h"

#include <cmath>

#include "base/scratch.h"

namespace mneme {
namespace {

// Cosine and sine of an angle, reduced and evaluated in double: the error is far below half an f32 ulp, and the bits do
// not depend on the C library for any angle met in practice.
void CosineAndSine(double angle, double* cosine, double* sine) {
  // pi/2 in three parts of 33 bits and the rest (fdlibm): n times each of the first two is exact for n < 2^20.
  constexpr double kPart1 = 1.57079632673412561417e+00;
  constexpr double kPart2 = 6.07710050630396597660e-11;
  constexpr double kPart3 = 2.02226624879595063154e-21;
  constexpr double kTwoOverPi = 6.36619772367581382433e-01;
  constexpr double kLargest = 1.5e6;
  if (!(std::fabs(angle) < kLargest)) {
    *cosine = std::cos(angle);
    *sine = std::sin(angle);
    return;
  }
  const double turns = angle * kTwoOverPi;
  const auto quadrant = static_cast<int32_t>(turns + (turns < 0 ? -0.5 : 0.5));
  const double n = quadrant;
  const double r = ((angle - n * kPart1) - n * kPart2) - n * kPart3;
  // Taylor series on [-pi/4, pi/4]; the first terms left out are below 2e-10.
  const double z = r * r;
  const double c = 1 + z * (-1.0 / 2 + z * (1.0 / 24 + z * (-1.0 / 720 + z * (1.0 / 40320 + z * (-1.0 / 3628800)))));
  const double s =
      r * (1 + z * (-1.0 / 6 + z * (1.0 / 120 + z * (-1.0 / 5040 + z * (1.0 / 362880 + z * (-1.0 / 39916800))))));
  const bool swap = (quadrant & 1) != 0;
  const double x = swap ? s : c;
  const double y = swap ? c : s;
  *cosine = ((quadrant + 1) & 2) != 0 ? -x : x;
  *sine = (quadrant & 2) != 0 ? -y : y;
}

}  // namespace

RotaryTurn::RotaryTurn(const Rotary& rotary, double position, float magnitude, std::pmr::memory_resource* memory)
    : layout_(rotary.layout), cosines_and_sines_(memory) {
  if (layout_ == RotaryLayout::kNone) return;
  pairs_ = static_cast<int64_t>(rotary.inverse_frequencies.size());
  cosines_and_sines_.resize(2 * rotary.inverse_frequencies.size());
  float* table = cosines_and_sines_.data();
  for (int64_t i = 0; i < pairs_; ++i) {
    double cosine, sine;
    CosineAndSine(position * static_cast<double>(rotary.inverse_frequencies[static_cast<size_t>(i)]), &cosine, &sine);
    const bool halves = layout_ == RotaryLayout::kHalves;
    table[halves ? i : 2 * i] = static_cast<float>(cosine * static_cast<double>(magnitude));
    table[halves ? pairs_ + i : 2 * i + 1] = static_cast<float>(sine * static_cast<double>(magnitude));
  }
}

RotaryTurn RotaryTurn::ByPosition(const Rotary& rotary, double position, std::pmr::memory_resource* memory) {
  return RotaryTurn(rotary, position, rotary.magnitude, memory);
}

RotaryTurn RotaryTurn::OfQueryByDistance(const Rotary& rotary, double distance, std::pmr::memory_resource* memory) {
  return RotaryTurn(rotary, distance, rotary.magnitude * rotary.magnitude, memory);
}

template <bool kTransposed>
void RotaryTurn::ApplyTo(float* row) const {
  // The transpose of a rotation has the opposite sines.
  constexpr float kSign = kTransposed ? -1.0f : 1.0f;
  const float* table = cosines_and_sines_.data();
  if (layout_ == RotaryLayout::kHalves) {
    float* upper = row + pairs_;
    for (int64_t i = 0; i < pairs_; ++i) {
      const float x = row[i], y = upper[i], c = table[i], s = kSign * table[pairs_ + i];
      row[i] = x * c - y * s;
      upper[i] = x * s + y * c;
    }
  } else if (layout_ == RotaryLayout::kInterleaved) {
    for (int64_t i = 0; i < 2 * pairs_; i += 2) {
      const float x = row[i], y = row[i + 1], c = table[i], s = kSign * table[i + 1];
      row[i] = x * c - y * s;
      row[i + 1] = x * s + y * c;
    }
  }
}

void RotaryTurn::Apply(float* row) const {
  ApplyTo<false>(row);
}

void RotaryTurn::ApplyTransposed(float* gradient) const {
  ApplyTo<true>(gradient);
}

void Rotate(const Rotary& rotary, double position, float* row) {
  Scratch scratch;
  RotaryTurn::ByPosition(rotary, position, &scratch).Apply(row);
}

void RotateQueryByDistance(const Rotary& rotary, double distance, float* query) {
  Scratch scratch;
  RotaryTurn::OfQueryByDistance(rotary, distance, &scratch).Apply(query);
}

}  // namespace mneme
