// SPDX-License-Identifier: Apache-2.0
#include "index/faiss/faiss_structure.h"

#include <faiss/Clustering.h>
#include <faiss/IndexFlat.h>
#include <faiss/IndexHNSW.h>
#include <faiss/IndexIVFFlat.h>
#include <faiss/IndexIVFPQ.h>
#include <faiss/IndexScalarQuantizer.h>
#include <faiss/invlists/InvertedLists.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <utility>

namespace mneme {
namespace {

faiss::ScalarQuantizer::QuantizerType SqType(FaissCode code) {
  switch (code) {
    case FaissCode::kSq6: return faiss::ScalarQuantizer::QT_6bit;
    case FaissCode::kSq4: return faiss::ScalarQuantizer::QT_4bit;
    case FaissCode::kSqF16: return faiss::ScalarQuantizer::QT_fp16;
    default: return faiss::ScalarQuantizer::QT_8bit;
  }
}

void SetTraining(faiss::ClusteringParameters& clustering, int most_points) {
  clustering.niter = 10;
  clustering.seed = 1234;
  clustering.spherical = false;
  clustering.min_points_per_centroid = 1;  // else FAISS prints a warning to stderr
  clustering.max_points_per_centroid = most_points;
}

// Lists are trained and filled by Euclidean distance, which makes them compact. Searches look lists up and scan them by
// inner product. So the coarse quantiser is exchanged after filling.
template <typename Ivf>
std::unique_ptr<faiss::Index> FillLists(std::unique_ptr<Ivf> index, std::unique_ptr<faiss::IndexFlatL2> coarse,
                                        const std::vector<float>& keys, int64_t rows, faiss::Index* assigner) {
  index->own_fields = false;
  SetTraining(index->cp, 64);
  index->clustering_index = assigner;
  index->train(rows, keys.data());
  index->clustering_index = nullptr;
  std::vector<float> centroids(static_cast<size_t>(coarse->ntotal * coarse->d));
  coarse->reconstruct_n(0, coarse->ntotal, centroids.data());
  if (assigner == nullptr) {
    index->add(rows, keys.data());
  } else {
    // `assigner` holds the centroids after training.
    std::vector<int64_t> lists(static_cast<size_t>(rows));
    assigner->assign(rows, keys.data(), lists.data());
    index->add_core(rows, keys.data(), nullptr, lists.data());
  }
  auto by_product = std::make_unique<faiss::IndexFlatIP>(coarse->d);
  by_product->add(coarse->ntotal, centroids.data());
  index->quantizer = by_product.release();
  index->own_fields = true;
  return index;
}

std::unique_ptr<faiss::Index> BuildFlat(const FaissShape& shape, const std::vector<float>& keys, int64_t rows,
                                        int dim) {
  std::unique_ptr<faiss::Index> index;
  if (shape.code == FaissCode::kFlat) {
    index = std::make_unique<faiss::IndexFlatIP>(dim);
  } else {
    index = std::make_unique<faiss::IndexScalarQuantizer>(dim, SqType(shape.code), faiss::METRIC_INNER_PRODUCT);
  }
  index->train(rows, keys.data());
  index->add(rows, keys.data());
  return index;
}

std::unique_ptr<faiss::Index> BuildIvf(const FaissShape& shape, const std::vector<float>& keys, int64_t rows, int dim,
                                       faiss::Index* assigner) {
  auto coarse = std::make_unique<faiss::IndexFlatL2>(dim);
  faiss::Index* const quantizer = coarse.get();
  const auto lists = static_cast<size_t>(shape.lists);
  const auto width = static_cast<size_t>(dim);
  if (shape.code == FaissCode::kFlat) {
    return FillLists(std::make_unique<faiss::IndexIVFFlat>(quantizer, width, lists, faiss::METRIC_INNER_PRODUCT),
                     std::move(coarse), keys, rows, assigner);
  }
  if (shape.code == FaissCode::kPq) {
    auto index = std::make_unique<faiss::IndexIVFPQ>(quantizer, width, lists, static_cast<size_t>(shape.pq_bytes), 8,
                                                     faiss::METRIC_INNER_PRODUCT);
    SetTraining(index->pq.cp, 32);
    return FillLists(std::move(index), std::move(coarse), keys, rows, assigner);
  }
  return FillLists(std::make_unique<faiss::IndexIVFScalarQuantizer>(quantizer, width, lists, SqType(shape.code),
                                                                    faiss::METRIC_INNER_PRODUCT),
                   std::move(coarse), keys, rows, assigner);
}

std::unique_ptr<faiss::Index> BuildHnsw(const FaissShape& shape, const std::vector<float>& keys, int64_t rows,
                                        int dim) {
  std::unique_ptr<faiss::IndexHNSW> index;
  if (shape.code == FaissCode::kFlat) {
    index = std::make_unique<faiss::IndexHNSWFlat>(dim, shape.degree, faiss::METRIC_INNER_PRODUCT);
  } else {
    index = std::make_unique<faiss::IndexHNSWSQ>(dim, SqType(shape.code), shape.degree, faiss::METRIC_INNER_PRODUCT);
  }
  index->hnsw.efConstruction = shape.ef_construction;
  index->train(rows, keys.data());
  index->add(rows, keys.data());
  return index;
}

bool HasSq(const faiss::ScalarQuantizer& sq, const FaissShape& shape, int64_t dim) {
  return sq.qtype == SqType(shape.code) && sq.d == static_cast<size_t>(dim);
}

// Whether rows are stored as `shape` says by a structure without lists or links.
bool IsFlat(const faiss::Index& index, const FaissShape& shape) {
  if (shape.code == FaissCode::kFlat) return dynamic_cast<const faiss::IndexFlat*>(&index) != nullptr;
  const auto* sq = dynamic_cast<const faiss::IndexScalarQuantizer*>(&index);
  return sq != nullptr && HasSq(sq->sq, shape, index.d);
}

bool IsIvf(const faiss::Index& index, const FaissShape& shape) {
  const auto* ivf = dynamic_cast<const faiss::IndexIVF*>(&index);
  if (ivf == nullptr || ivf->nlist != static_cast<size_t>(shape.lists)) return false;
  const auto* coarse = dynamic_cast<const faiss::IndexFlat*>(ivf->quantizer);
  if (coarse == nullptr || coarse->metric_type != faiss::METRIC_INNER_PRODUCT || coarse->d != index.d ||
      coarse->ntotal != shape.lists) {
    return false;
  }
  const auto* lists = dynamic_cast<const faiss::ArrayInvertedLists*>(ivf->invlists);
  if (lists == nullptr || lists->nlist != ivf->nlist || lists->code_size != ivf->code_size) return false;
  if (shape.code == FaissCode::kFlat) return dynamic_cast<const faiss::IndexIVFFlat*>(&index) != nullptr;
  if (shape.code == FaissCode::kPq) {
    const auto* pq = dynamic_cast<const faiss::IndexIVFPQ*>(&index);
    return pq != nullptr && pq->pq.M == static_cast<size_t>(shape.pq_bytes) && pq->pq.nbits == 8;
  }
  const auto* sq = dynamic_cast<const faiss::IndexIVFScalarQuantizer*>(&index);
  return sq != nullptr && HasSq(sq->sq, shape, index.d);
}

bool IsHnsw(const faiss::Index& index, const FaissShape& shape) {
  const auto* graph = dynamic_cast<const faiss::IndexHNSW*>(&index);
  return graph != nullptr && graph->storage != nullptr && graph->storage->ntotal == index.ntotal &&
         graph->storage->d == index.d && graph->storage->metric_type == faiss::METRIC_INNER_PRODUCT &&
         graph->hnsw.nb_neighbors(1) == shape.degree && IsFlat(*graph->storage, shape);
}

}  // namespace

bool IsExact(const FaissShape& shape) {
  return shape.family == FaissShape::Family::kFlat && shape.code == FaissCode::kFlat;
}

KeyCenter ComputeKeyCenter(const FaissShape& shape, const float* keys, int64_t rows, int64_t dim) {
  KeyCenter center;
  center.mean.assign(static_cast<size_t>(dim), 0.0f);
  if (IsExact(shape)) return center;
  std::vector<double> sum(static_cast<size_t>(dim), 0.0);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t d = 0; d < dim; ++d) sum[static_cast<size_t>(d)] += keys[r * dim + d];
  }
  for (size_t d = 0; d < sum.size(); ++d) center.mean[d] = static_cast<float>(sum[d] / static_cast<double>(rows));
  return center;
}

void ScaleKeys(std::vector<float>& keys) {
  constexpr int kMostExponent = 30;
  float largest = 0;
  for (const float x : keys) largest = std::max(largest, std::abs(x));
  if (largest == 0) return;
  const int exponent = std::ilogb(largest);
  if (std::abs(exponent) <= kMostExponent) return;
  for (float& x : keys) x = std::ldexp(x, -exponent);
}

std::unique_ptr<faiss::Index> BuildStructure(const FaissShape& shape, const std::vector<float>& keys, int64_t rows,
                                             int64_t dim, faiss::Index* assigner) {
  switch (shape.family) {
    case FaissShape::Family::kFlat: return BuildFlat(shape, keys, rows, static_cast<int>(dim));
    case FaissShape::Family::kIvf: return BuildIvf(shape, keys, rows, static_cast<int>(dim), assigner);
    case FaissShape::Family::kHnsw: return BuildHnsw(shape, keys, rows, static_cast<int>(dim));
  }
  return nullptr;
}

bool HasShape(const faiss::Index& index, const FaissShape& shape, int64_t rows, int64_t dim) {
  if (index.ntotal != rows || index.d != dim || !index.is_trained || index.metric_type != faiss::METRIC_INNER_PRODUCT) {
    return false;
  }
  switch (shape.family) {
    case FaissShape::Family::kFlat: return IsFlat(index, shape);
    case FaissShape::Family::kIvf: return IsIvf(index, shape);
    case FaissShape::Family::kHnsw: return IsHnsw(index, shape);
  }
  return false;
}

void SetSearch(faiss::Index& index, const FaissShape& shape, const IndexSpec& spec) {
  if (auto* ivf = dynamic_cast<faiss::IndexIVF*>(&index)) {
    // Attention queries are not distributed like keys, so the right lists are not just the few nearest ones.
    const int32_t probes = spec.probes > 0 ? spec.probes : std::max(8, shape.lists / 6);
    ivf->nprobe = static_cast<size_t>(std::min(probes, shape.lists));
  }
  if (auto* graph = dynamic_cast<faiss::IndexHNSW*>(&index)) {
    graph->hnsw.efSearch = spec.ef_search > 0 ? spec.ef_search : 256;
  }
}

size_t StructureBytes(const faiss::Index& index) {
  const auto rows = static_cast<size_t>(index.ntotal);
  const auto row_bytes = static_cast<size_t>(index.d) * sizeof(float);
  if (const auto* ivf = dynamic_cast<const faiss::IndexIVF*>(&index)) {
    return rows * (ivf->code_size + sizeof(int64_t)) + ivf->nlist * row_bytes;
  }
  if (const auto* graph = dynamic_cast<const faiss::IndexHNSW*>(&index)) {
    const size_t links = graph->hnsw.neighbors.size() * sizeof(int32_t);
    return links + rows * (sizeof(size_t) + sizeof(int)) + StructureBytes(*graph->storage);
  }
  if (const auto* codes = dynamic_cast<const faiss::IndexFlatCodes*>(&index)) return rows * codes->code_size;
  return rows * row_bytes;
}

}  // namespace mneme
