// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_INDEX_FAISS_FAISS_STRUCTURE_H_
#define MNEME_INDEX_FAISS_FAISS_STRUCTURE_H_

// Internal to index/: FAISS structures on the host, made and recognised. What is called here throws what FAISS throws.

#include <faiss/Index.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "index/faiss/faiss_index.h"

namespace mneme {

// How keys go into FAISS: less their mean. All inner products of one query then shift by the same constant, so
// their order stays, while the few huge channels that attention's keys share no longer drown the rest, neither in
// clusters nor in codes nor in the links of a graph.
//
// Graphs are built and searched by the inner product of centered keys (Morozov and Babenko 2018). Putting keys on a
// sphere by one more coordinate, so that Euclidean neighbours are greatest inner products (Neyshabur and Srebro
// 2015), was measured and is far worse for attention: where queries do not come from where keys lie, 32,768 keys,
// ef_search 256, it finds 0.45 of the best 32 rows, this 0.97.
struct KeySpace {
  std::vector<float> mean;  // [dim]

  int64_t dim() const { return static_cast<int64_t>(mean.size()); }

  std::vector<float> Center(const float* keys, int64_t rows) const {
    std::vector<float> centered(static_cast<size_t>(rows * dim()));
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t d = 0; d < dim(); ++d) {
        centered[static_cast<size_t>(r * dim() + d)] = keys[r * dim() + d] - mean[static_cast<size_t>(d)];
      }
    }
    return centered;
  }
};

bool IsExact(const FaissShape& shape);

// The mean of keys f32 [rows, dim]; zeros for an exact shape.
KeySpace MakeSpace(const FaissShape& shape, const float* keys, int64_t rows, int64_t dim);

// Scales very small or very large centered keys by a power of two, so that their inner products with each other neither
// vanish nor overflow. Inner products of one query keep their order.
void ScaleKeys(std::vector<float>& keys);

// The structure over centered keys f32 [rows, dim]. What lists are trained and filled by may be elsewhere: `assigner`
// is an empty index by Euclidean distance, or null for one on the host.
std::unique_ptr<faiss::Index> BuildStructure(const FaissShape& shape, const std::vector<float>& keys, int64_t rows,
                                             int64_t dim, faiss::Index* assigner);

// True if `index` is what BuildStructure makes for `shape`: class by class, size by size.
bool IsOfShape(const faiss::Index& index, const FaissShape& shape, int64_t rows, int64_t dim);

// Numbers that belong to a search, not to what was built: taken from the spec also after loading.
void SetSearch(faiss::Index& index, const FaissShape& shape, const IndexSpec& spec);

size_t StructureBytes(const faiss::Index& index);

}  // namespace mneme

#endif  // MNEME_INDEX_FAISS_FAISS_STRUCTURE_H_
