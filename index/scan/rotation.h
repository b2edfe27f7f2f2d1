// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_INDEX_SCAN_ROTATION_H_
#define MNEME_INDEX_SCAN_ROTATION_H_

#include <cstdint>

namespace mneme {

// A fixed orthogonal map of R^dim: signs flipped by a fixed pattern, then a Hadamard transform over the largest powers
// of two that `dim` is a sum of. It leaves inner products as they are and spreads a vector's few great channels over
// all of them, so that one scale a row fits every element (the idea of QuIP# and of llama.cpp's rotated caches).
//
// vector: [dim], changed in place. In f32 the result differs from the exact one by at most 2^-20 of its norm.
void Rotate(float* vector, int64_t dim);

// For who does the transform by itself (block_coder.h): weights [dim], what Rotate multiplies each element by before
// it, the sign and, but for a transform of two elements, the scale.
void RotationWeights(int64_t dim, float* weights);

}  // namespace mneme

#endif  // MNEME_INDEX_SCAN_ROTATION_H_
