// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_INDEX_FAISS_FAISS_STRUCTURE_H_
#define MNEME_INDEX_FAISS_FAISS_STRUCTURE_H_

// Internal to index/: builds and recognises FAISS structures on the host. Functions here throw what FAISS throws;
// callers run them inside CallFaiss.

#include <faiss/Index.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "index/faiss/faiss_index.h"

namespace mneme {

// The mean of the keys, which is subtracted before they go into FAISS. This shifts all inner products of a query by the
// same constant and keeps their order. Attention keys share a few huge channels, which would otherwise dominate
// clusters, codes and the links of graphs.
//
// Graphs are built and searched by the inner product of centered keys (Morozov and Babenko 2018). The reduction to
// Euclidean distance by one more coordinate (Neyshabur and Srebro 2015) was measured and is far worse for attention
// queries: with 32,768 keys and ef_search 256 it finds 0.45 of the best 32 rows, this finds 0.97.
struct KeyCenter {
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

// keys: f32 [rows, dim]. Returns: their mean; zeros for an exact shape, so that no rounding changes the keys.
KeyCenter ComputeKeyCenter(const FaissShape& shape, const float* keys, int64_t rows, int64_t dim);

// Multiplies very small or very large centered keys by a power of two, so that their inner products neither vanish nor
// overflow. This keeps the order of a query's inner products.
void ScaleKeys(std::vector<float>& keys);

// Builds the structure over centered keys, f32 [rows, dim].
// assigner: an empty index by Euclidean distance, for instance on a GPU, which trains and fills lists; null: FAISS's
// own on the host.
std::unique_ptr<faiss::Index> BuildStructure(const FaissShape& shape, const std::vector<float>& keys, int64_t rows,
                                             int64_t dim, faiss::Index* assigner);

// Whether `index` is what BuildStructure makes for `shape`, by its classes and sizes.
bool HasShape(const faiss::Index& index, const FaissShape& shape, int64_t rows, int64_t dim);

// Sets the numbers of `spec` that apply to searches, not to building. Called after loading, too.
void SetSearch(faiss::Index& index, const FaissShape& shape, const IndexSpec& spec);

size_t StructureBytes(const faiss::Index& index);

}  // namespace mneme

#endif  // MNEME_INDEX_FAISS_FAISS_STRUCTURE_H_
