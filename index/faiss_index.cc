#include "index/faiss_index.h"

#include <faiss/Clustering.h>
#include <faiss/IndexFlat.h>
#include <faiss/IndexHNSW.h>
#include <faiss/IndexIVFFlat.h>
#include <faiss/IndexIVFPQ.h>
#include <faiss/IndexScalarQuantizer.h>
#include <faiss/impl/io.h>
#include <faiss/index_io.h>
#include <faiss/invlists/InvertedLists.h>
#include <omp.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <exception>
#include <new>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"

#include "base/checksum.h"
#include "base/dtype.h"
#include "base/status.h"

namespace mneme {
namespace {

static_assert(std::endian::native == std::endian::little, "FAISS writes numbers as they lie in memory");

// FAISS runs in the calling thread alone: the host did not lend it others. The setting belongs to the calling
// thread, so concurrent searches do not disturb each other.
class OneOpenMpThread {
 public:
  OneOpenMpThread() : saved_(omp_get_max_threads()) { omp_set_num_threads(1); }
  ~OneOpenMpThread() { omp_set_num_threads(saved_); }
  OneOpenMpThread(const OneOpenMpThread&) = delete;
  OneOpenMpThread& operator=(const OneOpenMpThread&) = delete;

 private:
  const int saved_;
};

// Runs a call into FAISS; whatever it throws becomes a Status.
template <typename Call>
absl::Status Guarded(absl::string_view what, Call&& call) {
  const OneOpenMpThread one;
  try {
    call();
    return absl::OkStatus();
  } catch (const std::bad_alloc&) {
    return absl::ResourceExhaustedError(absl::StrCat(what, ": out of memory"));
  } catch (const std::exception& error) {
    return absl::InternalError(absl::StrCat(what, ": FAISS: ", error.what()));
  } catch (...) {
    return absl::InternalError(absl::StrCat(what, ": FAISS: unknown exception"));
  }
}

faiss::ScalarQuantizer::QuantizerType SqType(FaissCode code) {
  switch (code) {
    case FaissCode::kSq6: return faiss::ScalarQuantizer::QT_6bit;
    case FaissCode::kSq4: return faiss::ScalarQuantizer::QT_4bit;
    case FaissCode::kSqF16: return faiss::ScalarQuantizer::QT_fp16;
    default: return faiss::ScalarQuantizer::QT_8bit;
  }
}

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

bool IsExact(const FaissShape& shape) {
  return shape.family == FaissShape::Family::kFlat && shape.code == FaissCode::kFlat;
}

KeySpace MakeSpace(const FaissShape& shape, const float* keys, int64_t rows, int64_t dim) {
  KeySpace space;
  space.mean.assign(static_cast<size_t>(dim), 0.0f);
  if (IsExact(shape)) return space;  // the keys as they are, so that no rounding comes between
  std::vector<double> sum(static_cast<size_t>(dim), 0.0);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t d = 0; d < dim; ++d) sum[static_cast<size_t>(d)] += keys[r * dim + d];
  }
  for (size_t d = 0; d < sum.size(); ++d) space.mean[d] = static_cast<float>(sum[d] / static_cast<double>(rows));
  return space;
}

void SetTraining(faiss::ClusteringParameters& clustering, int most_points) {
  clustering.niter = 10;
  clustering.seed = 1234;
  clustering.spherical = false;
  clustering.min_points_per_centroid = 1;  // fewer only earn a warning on stderr
  clustering.max_points_per_centroid = most_points;
}

// Lists are trained and filled by Euclidean distance, which makes them compact, but looked up and scanned by
// inner product, which is what is asked for: the coarse quantiser is exchanged in between.
template <typename Ivf>
std::unique_ptr<faiss::Index> FillLists(std::unique_ptr<Ivf> index, std::unique_ptr<faiss::IndexFlatL2> coarse,
                                        const std::vector<float>& keys, int64_t rows) {
  index->own_fields = false;
  SetTraining(index->cp, 64);
  index->train(rows, keys.data());
  index->add(rows, keys.data());
  std::vector<float> centroids(static_cast<size_t>(coarse->ntotal * coarse->d));
  coarse->reconstruct_n(0, coarse->ntotal, centroids.data());
  auto by_product = std::make_unique<faiss::IndexFlatIP>(coarse->d);
  by_product->add(coarse->ntotal, centroids.data());
  index->quantizer = by_product.release();
  index->own_fields = true;
  return index;
}

std::unique_ptr<faiss::Index> BuildStructure(const FaissShape& shape, const std::vector<float>& keys, int64_t rows,
                                             int64_t key_dim) {
  const auto dim = static_cast<int>(key_dim);
  switch (shape.family) {
    case FaissShape::Family::kFlat: {
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
    case FaissShape::Family::kIvf: {
      auto coarse = std::make_unique<faiss::IndexFlatL2>(dim);
      faiss::Index* const quantizer = coarse.get();
      const auto lists = static_cast<size_t>(shape.lists);
      const auto width = static_cast<size_t>(dim);
      if (shape.code == FaissCode::kFlat) {
        return FillLists(std::make_unique<faiss::IndexIVFFlat>(quantizer, width, lists, faiss::METRIC_INNER_PRODUCT),
                         std::move(coarse), keys, rows);
      }
      if (shape.code == FaissCode::kPq) {
        auto index = std::make_unique<faiss::IndexIVFPQ>(quantizer, width, lists, static_cast<size_t>(shape.pq_bytes),
                                                         8, faiss::METRIC_INNER_PRODUCT);
        SetTraining(index->pq.cp, 32);
        return FillLists(std::move(index), std::move(coarse), keys, rows);
      }
      return FillLists(std::make_unique<faiss::IndexIVFScalarQuantizer>(quantizer, width, lists, SqType(shape.code),
                                                                        faiss::METRIC_INNER_PRODUCT),
                       std::move(coarse), keys, rows);
    }
    case FaissShape::Family::kHnsw: {
      std::unique_ptr<faiss::IndexHNSW> index;
      if (shape.code == FaissCode::kFlat) {
        index = std::make_unique<faiss::IndexHNSWFlat>(dim, shape.degree, faiss::METRIC_INNER_PRODUCT);
      } else {
        index =
            std::make_unique<faiss::IndexHNSWSQ>(dim, SqType(shape.code), shape.degree, faiss::METRIC_INNER_PRODUCT);
      }
      index->hnsw.efConstruction = shape.ef_construction;
      index->train(rows, keys.data());
      index->add(rows, keys.data());
      return index;
    }
  }
  return nullptr;
}

// True if `index` is what BuildStructure makes for `shape`: class by class, size by size.
bool IsOfShape(const faiss::Index& index, const FaissShape& shape, int64_t rows, int64_t dim) {
  if (index.ntotal != rows || index.d != dim || !index.is_trained || index.metric_type != faiss::METRIC_INNER_PRODUCT) {
    return false;
  }
  const bool flat = shape.code == FaissCode::kFlat;
  const auto is_sq = [&shape, dim](const faiss::ScalarQuantizer& sq) {
    return sq.qtype == SqType(shape.code) && sq.d == static_cast<size_t>(dim);
  };
  switch (shape.family) {
    case FaissShape::Family::kFlat: {
      if (flat) return dynamic_cast<const faiss::IndexFlat*>(&index) != nullptr;
      const auto* sq = dynamic_cast<const faiss::IndexScalarQuantizer*>(&index);
      return sq != nullptr && is_sq(sq->sq);
    }
    case FaissShape::Family::kIvf: {
      const auto* ivf = dynamic_cast<const faiss::IndexIVF*>(&index);
      if (ivf == nullptr || ivf->nlist != static_cast<size_t>(shape.lists)) return false;
      const auto* coarse = dynamic_cast<const faiss::IndexFlat*>(ivf->quantizer);
      if (coarse == nullptr || coarse->metric_type != faiss::METRIC_INNER_PRODUCT || coarse->d != index.d ||
          coarse->ntotal != shape.lists) {
        return false;
      }
      const auto* lists = dynamic_cast<const faiss::ArrayInvertedLists*>(ivf->invlists);
      if (lists == nullptr || lists->nlist != ivf->nlist || lists->code_size != ivf->code_size) return false;
      if (flat) return dynamic_cast<const faiss::IndexIVFFlat*>(&index) != nullptr;
      if (shape.code == FaissCode::kPq) {
        const auto* pq = dynamic_cast<const faiss::IndexIVFPQ*>(&index);
        return pq != nullptr && pq->pq.M == static_cast<size_t>(shape.pq_bytes) && pq->pq.nbits == 8;
      }
      const auto* sq = dynamic_cast<const faiss::IndexIVFScalarQuantizer*>(&index);
      return sq != nullptr && is_sq(sq->sq);
    }
    case FaissShape::Family::kHnsw: {
      const auto* graph = dynamic_cast<const faiss::IndexHNSW*>(&index);
      if (graph == nullptr || graph->storage == nullptr || graph->storage->ntotal != rows ||
          graph->storage->d != index.d || graph->storage->metric_type != faiss::METRIC_INNER_PRODUCT ||
          graph->hnsw.nb_neighbors(1) != shape.degree) {
        return false;
      }
      if (flat) return dynamic_cast<const faiss::IndexFlat*>(graph->storage) != nullptr;
      const auto* sq = dynamic_cast<const faiss::IndexScalarQuantizer*>(graph->storage);
      return sq != nullptr && is_sq(sq->sq);
    }
  }
  return false;
}

// Numbers that belong to a search, not to what was built: taken from the spec also after loading.
void SetSearch(faiss::Index& index, const FaissShape& shape, const IndexSpec& spec) {
  if (auto* ivf = dynamic_cast<faiss::IndexIVF*>(&index)) {
    // Attention queries do not come from where the keys lie, so the right lists are not the few nearest ones.
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

// The blob, little endian:
//   magic [8]  version u32  checksum u32 (of all other bytes)  rows i64  dim i64  text bytes u32  zero u32
//   FAISS bytes u64  text  mean f32 [dim]  FAISS's own bytes
constexpr char kMagic[8] = {'M', 'N', 'E', 'M', 'E', 'K', 'I', 'X'};
constexpr uint32_t kVersion = 1;
constexpr size_t kChecksumAt = 12;
constexpr size_t kChecked = 16;
constexpr size_t kHeader = 48;

uint32_t BlobChecksum(absl::string_view blob) {
  const uint32_t start = Checksum32(blob.data(), kChecksumAt);
  return Checksum32(blob.data() + kChecked, blob.size() - kChecked, start);
}

template <typename T>
void Put(std::string& blob, size_t at, T value) {
  std::memcpy(blob.data() + at, &value, sizeof(value));
}

template <typename T>
T Get(absl::string_view blob, size_t at) {
  T value;
  std::memcpy(&value, blob.data() + at, sizeof(value));
  return value;
}

class FaissIndex final : public KeyIndex {
 public:
  FaissIndex(FaissShape shape, KeySpace space, std::unique_ptr<faiss::Index> index)
      : shape_(shape), space_(std::move(space)), index_(std::move(index)) {}

  int64_t rows() const override { return index_->ntotal; }
  int64_t dim() const override { return space_.dim(); }
  bool exact() const override { return shape_.family == FaissShape::Family::kFlat && shape_.code == FaissCode::kFlat; }

  absl::Status Search(const float* queries, int64_t count, int64_t fetch, int64_t* rows) const override {
    if (count < 0 || fetch < 0) {
      return absl::InvalidArgumentError(absl::StrCat("count ", count, " and fetch ", fetch, " must not be negative"));
    }
    if (count == 0 || fetch == 0) return absl::OkStatus();
    if (!AllFinite(DType::kF32, queries, static_cast<size_t>(count * dim()))) {
      return absl::InvalidArgumentError("queries must be finite");
    }
    const int64_t found = std::min(fetch, index_->ntotal);
    return Guarded(shape_.Text(), [&] {
      std::vector<float> scores(static_cast<size_t>(count * found));
      std::vector<int64_t> labels(static_cast<size_t>(count * found));
      index_->search(count, queries, found, scores.data(), labels.data());
      for (int64_t i = 0; i < count; ++i) {
        std::copy_n(labels.begin() + i * found, found, rows + i * fetch);
        std::fill_n(rows + i * fetch + found, fetch - found, int64_t{-1});
      }
    });
  }

  absl::StatusOr<std::string> Serialize() const override {
    std::string blob;
    MNEME_RETURN_IF_ERROR(Guarded(shape_.Text(), [&] {
      faiss::VectorIOWriter writer;
      faiss::write_index(index_.get(), &writer);
      const std::string text = shape_.Text();
      const size_t mean_bytes = space_.mean.size() * sizeof(float);
      const size_t payload_at = kHeader + text.size() + mean_bytes;
      blob.resize(payload_at + writer.data.size());
      std::memcpy(blob.data(), kMagic, sizeof(kMagic));
      Put(blob, 8, kVersion);
      Put(blob, 16, static_cast<int64_t>(index_->ntotal));
      Put(blob, 24, space_.dim());
      Put(blob, 32, static_cast<uint32_t>(text.size()));
      Put(blob, 40, static_cast<uint64_t>(writer.data.size()));
      std::memcpy(blob.data() + kHeader, text.data(), text.size());
      std::memcpy(blob.data() + kHeader + text.size(), space_.mean.data(), mean_bytes);
      std::memcpy(blob.data() + payload_at, writer.data.data(), writer.data.size());
      Put(blob, kChecksumAt, BlobChecksum(blob));
    }));
    return blob;
  }

  size_t MemoryBytes() const override {
    return sizeof(*this) + space_.mean.size() * sizeof(float) + StructureBytes(*index_);
  }

 private:
  const FaissShape shape_;
  const KeySpace space_;
  const std::unique_ptr<faiss::Index> index_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<KeyIndex>> BuildFaissIndex(const IndexSpec& spec, const float* keys, int64_t rows,
                                                          int64_t dim) {
  MNEME_ASSIGN_OR_RETURN(const FaissShape shape, ResolveShape(spec, rows, dim));
  std::unique_ptr<KeyIndex> result;
  MNEME_RETURN_IF_ERROR(Guarded(shape.Text(), [&] {
    KeySpace space = MakeSpace(shape, keys, rows, dim);
    std::unique_ptr<faiss::Index> index = BuildStructure(shape, space.Center(keys, rows), rows, dim);
    SetSearch(*index, shape, spec);
    result = std::make_unique<FaissIndex>(shape, std::move(space), std::move(index));
  }));
  return result;
}

absl::StatusOr<std::unique_ptr<KeyIndex>> LoadFaissIndex(const IndexSpec& spec, absl::string_view blob, int64_t rows,
                                                         int64_t dim) {
  MNEME_ASSIGN_OR_RETURN(const FaissShape shape, ResolveShape(spec, rows, dim));
  const std::string text = shape.Text();
  if (blob.size() < kHeader || std::memcmp(blob.data(), kMagic, sizeof(kMagic)) != 0 ||
      Get<uint32_t>(blob, kChecksumAt) != BlobChecksum(blob)) {
    return absl::DataLossError(absl::StrCat(text, ": the index blob of ", blob.size(), " bytes is damaged"));
  }
  if (const auto version = Get<uint32_t>(blob, 8); version != kVersion) {
    return absl::FailedPreconditionError(
        absl::StrCat(text, ": the index blob has version ", version, ", this build reads ", kVersion));
  }
  const auto blob_rows = Get<int64_t>(blob, 16);
  const auto blob_dim = Get<int64_t>(blob, 24);
  const auto text_bytes = Get<uint32_t>(blob, 32);
  if (text_bytes > blob.size() - kHeader) return absl::DataLossError(absl::StrCat(text, ": no sense in the header"));
  const absl::string_view blob_text = blob.substr(kHeader, text_bytes);
  if (blob_text != text || blob_rows != rows || blob_dim != dim) {
    return absl::FailedPreconditionError(absl::StrCat("the index blob is \"", blob_text, "\" of ", blob_rows,
                                                      " rows, dim ", blob_dim, "; expected \"", text, "\" of ", rows,
                                                      " rows, dim ", dim));
  }
  const size_t mean_at = kHeader + text_bytes;
  const size_t mean_bytes = static_cast<size_t>(dim) * sizeof(float);
  const size_t payload_at = mean_at + mean_bytes;
  if (blob.size() < payload_at || blob.size() - payload_at != Get<uint64_t>(blob, 40)) {
    return absl::DataLossError(absl::StrCat(text, ": no sense in the header"));
  }

  std::unique_ptr<KeyIndex> result;
  bool as_expected = false;
  MNEME_RETURN_IF_ERROR(Guarded(text, [&] {
    KeySpace space;
    space.mean.resize(static_cast<size_t>(dim));
    std::memcpy(space.mean.data(), blob.data() + mean_at, mean_bytes);
    faiss::VectorIOReader reader;
    reader.data.assign(blob.begin() + static_cast<int64_t>(payload_at), blob.end());
    std::unique_ptr<faiss::Index> index(faiss::read_index(&reader));
    as_expected = IsOfShape(*index, shape, rows, dim) && reader.rp == reader.data.size();
    if (!as_expected) return;
    SetSearch(*index, shape, spec);
    result = std::make_unique<FaissIndex>(shape, std::move(space), std::move(index));
  }));
  if (!as_expected) return absl::DataLossError(absl::StrCat(text, ": the index blob holds something else"));
  return result;
}

absl::string_view FaissVersion() {
#define MNEME_TEXT_(x) #x
#define MNEME_TEXT(x) MNEME_TEXT_(x)
  return MNEME_TEXT(FAISS_VERSION_MAJOR) "." MNEME_TEXT(FAISS_VERSION_MINOR) "." MNEME_TEXT(FAISS_VERSION_PATCH);
#undef MNEME_TEXT
#undef MNEME_TEXT_
}

}  // namespace mneme
