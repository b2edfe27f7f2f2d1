// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_TESTS_MEMORY_TESTING_H_
#define MNEME_TESTS_MEMORY_TESTING_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/model_card.h"
#include "base/tensor.h"
#include "memory/memory.h"
#include "memory/store.h"
#include "tests/attention/random_tensors.h"
#include "tests/storage/testing.h"

namespace mneme {

// Two layers of different shapes: layer 3 with 6 query and 2 KV heads, keys and values of 16; layer 7 with
// 4 query heads and 1 KV head, keys of 24 of which 20 turn, values of 8.
ModelCard UnequalCard();

// Aborts if the store cannot be opened.
std::unique_ptr<Store> OpenStore(const std::string& path, const StoreOptions& options = {});

// A tensor [rows, heads, dim] with its bytes. Elements are made by `element(row, head, i)` and rounded to `dtype`.
struct Rows {
  std::vector<char> bytes;
  RowTensor tensor;
};
Rows MakeRows(DType dtype, int64_t rows, int64_t heads, int64_t dim,
              const std::function<float(int64_t, int64_t, int64_t)>& element);

// Rows of one layer, tokens [begin, begin + n). Their numbers are a function of `owner`, layer, token and place.
Rows KeysOf(uint64_t owner, const LayerCard& layer, int64_t begin, int64_t n, DType dtype = DType::kF32);
Rows ValuesOf(uint64_t owner, const LayerCard& layer, int64_t begin, int64_t n, DType dtype = DType::kF32);

// What a memory must hold, as vectors of decoded rows. A copy is cheap: copies share rows.
class Oracle {
 public:
  struct Row {
    std::vector<std::vector<double>> keys, values;  // [kv_heads][dim], as stored and decoded
  };

  Oracle(const ModelCard& card, const MemoryOptions& options)
      : card_(card), options_(options), rows_(card.layers.size()) {}

  const ModelCard& card() const { return card_; }
  const MemoryOptions& options() const { return options_; }
  int64_t first_kept() const { return first_kept_; }
  int64_t End(size_t layer) const { return static_cast<int64_t>(rows_[layer].size()); }
  int64_t Whole() const;
  int64_t Known() const { return static_cast<int64_t>(positions_.size()); }  // tokens whose position is decided
  int64_t Held() const;                                                      // whole tokens that are not evicted
  bool Holds(int64_t token) const { return Pinned(token) || token >= first_kept_; }
  bool Pinned(int64_t token) const { return token < options_.pinned_tokens; }
  const Row& At(size_t layer, int64_t token) const { return *rows_[layer][static_cast<size_t>(token)]; }
  int64_t Position(int64_t token) const { return positions_[static_cast<size_t>(token)]; }
  int32_t TokenId(int64_t token) const { return token_ids_[static_cast<size_t>(token)]; }

  void Append(size_t layer, const RowTensor& keys, const RowTensor& values, const int64_t* positions,
              const int32_t* token_ids);
  void Truncate(int64_t tokens);
  void Evict(int64_t keep_tokens);
  void DropPending() { Cut(Whole()); }  // rows that a commit leaves out

 private:
  void Cut(int64_t tokens);

  ModelCard card_;
  MemoryOptions options_;
  std::vector<std::vector<std::shared_ptr<const Row>>> rows_;  // [layer][token]
  std::vector<int64_t> positions_;
  std::vector<int32_t> token_ids_;
  int64_t first_kept_ = 0;
};

// Appends tokens [begin, begin + n) of `owner` to all layers of the memory and of the oracle, which may be null.
void AppendTokens(Memory& memory, Oracle* oracle, uint64_t owner, int64_t begin, int64_t n);

// Checks that Info and every held row that Read returns equal the oracle's, bit for bit, and that Read refuses evicted
// tokens.
void ExpectHolds(const Memory& memory, const Oracle& oracle);

}  // namespace mneme

#endif  // MNEME_TESTS_MEMORY_TESTING_H_
