// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_INDEX_SCAN_ROTATION_H_
#define MNEME_INDEX_SCAN_ROTATION_H_

#include <cstdint>

namespace mneme {

// Applies a fixed orthogonal map of R^dim: it flips signs by a fixed pattern, then applies a Hadamard transform to each
// of the powers of two that `dim` is a sum of, the greatest first. The map preserves inner products and spreads a few
// large channels over all, so that one scale for each row fits every element (as in QuIP#, Tseng et al. 2024).
//
// vector: f32 [dim], changed in place. The result differs from the exact one by at most 2^-20 of its norm, and its bits
// do not depend on the CPU.
void Rotate(float* vector, int64_t dim);

// For code that computes the transform itself (coding_kernel-inl.h). weights: f32 [dim], the factor by which Rotate
// multiplies each element before the transform: the sign times the scale (for transforms of two elements the sign
// alone).
void RotationWeights(int64_t dim, float* weights);

}  // namespace mneme

#endif  // MNEME_INDEX_SCAN_ROTATION_H_
