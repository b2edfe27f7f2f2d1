// SPDX-License-Identifier: Apache-2.0
#include "tests/memory/testing.h"

#include <algorithm>
#include <cmath>

namespace mneme {
namespace {

LayerCard MakeLayer(int32_t number, int32_t query_heads, int32_t kv_heads, int32_t key_dim, int32_t value_dim) {
  LayerCard layer;
  layer.layer = number;
  layer.query_heads = query_heads;
  layer.kv_heads = kv_heads;
  layer.key_dim = key_dim;
  layer.value_dim = value_dim;
  layer.scale = 0.25f;
  return layer;
}

Rotary MakeRotary(RotaryLayout layout, int pairs, float magnitude) {
  Rotary rotary;
  rotary.layout = layout;
  rotary.magnitude = magnitude;
  for (int i = 0; i < pairs; ++i) {
    rotary.inverse_frequencies.push_back(static_cast<float>(std::pow(1000.0, -static_cast<double>(i) / pairs)));
  }
  return rotary;
}

// A number in (-1, 1) that is a function of its place.
float ElementOf(uint64_t owner, int32_t layer, int kind, int64_t token, int64_t head, int64_t i) {
  uint64_t x = owner * 0x9e3779b97f4a7c15u + static_cast<uint64_t>(layer) * 0xc2b2ae3d27d4eb4fu +
               static_cast<uint64_t>(kind) * 0x165667b19e3779f9u + static_cast<uint64_t>(token) * 0xd6e8feb86659fd93u +
               static_cast<uint64_t>(head) * 0xa0761d6478bd642fu + static_cast<uint64_t>(i) * 0xe7037ed1a0b428dbu;
  x = (x ^ x >> 32) * 0xd6e8feb86659fd93u;
  x = (x ^ x >> 32) * 0xd6e8feb86659fd93u;
  x ^= x >> 32;
  return static_cast<float>(static_cast<int64_t>(x >> 40) - (int64_t{1} << 23)) * 0x1p-23f;
}

// A row as a memory that stores `stored` returns it.
std::vector<double> Stored(const RowTensor& tensor, int64_t row, int64_t head, DType stored, bool normalise) {
  std::vector<float> values(static_cast<size_t>(tensor.dim));
  ConvertToF32(tensor.dtype, tensor.Row(row, head), values.data(), values.size());
  if (normalise) {
    double squares = 1e-6;
    for (const float x : values) squares += static_cast<double>(x) * static_cast<double>(x);
    for (float& x : values) x *= static_cast<float>(1 / std::sqrt(squares));
  }
  std::vector<char> bytes(RowBytes(stored, tensor.dim));
  EncodeRow(values.data(), stored, bytes.data(), tensor.dim);
  DecodeRow(stored, bytes.data(), values.data(), tensor.dim);
  return {values.begin(), values.end()};
}

}  // namespace

ModelCard UnequalCard() {
  ModelCard card;
  card.model_name = "unequal";
  card.weights_fingerprint = "sha256:1";
  card.layers.push_back(MakeLayer(3, 6, 2, 16, 16));
  card.layers.back().rotary = MakeRotary(RotaryLayout::kInterleaved, 8, 1.0f);
  card.layers.push_back(MakeLayer(7, 4, 1, 24, 8));
  card.layers.back().rotary = MakeRotary(RotaryLayout::kHalves, 10, 1.125f);
  return card;
}

std::unique_ptr<Store> OpenStore(const std::string& path, const StoreOptions& options) {
  absl::StatusOr<std::unique_ptr<Store>> store = Store::Open(path, options);
  if (!store.ok()) {
    ADD_FAILURE() << store.status();
    std::abort();
  }
  return *std::move(store);
}

Rows MakeRows(DType dtype, int64_t rows, int64_t heads, int64_t dim,
              const std::function<float(int64_t, int64_t, int64_t)>& element) {
  Rows made;
  made.bytes.resize(static_cast<size_t>(rows * heads * dim) * DTypeSize(dtype));
  made.tensor = {made.bytes.data(), dtype, rows, heads, dim, heads * dim, dim};
  std::vector<float> row(static_cast<size_t>(dim));
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t h = 0; h < heads; ++h) {
      for (int64_t i = 0; i < dim; ++i) row[static_cast<size_t>(i)] = element(r, h, i);
      ConvertFromF32(row.data(), dtype, const_cast<void*>(made.tensor.Row(r, h)), row.size());
    }
  }
  return made;
}

Rows KeysOf(uint64_t owner, const LayerCard& layer, int64_t begin, int64_t n, DType dtype) {
  return MakeRows(dtype, n, layer.kv_heads, layer.key_dim, [&](int64_t row, int64_t head, int64_t i) {
    return 3 * ElementOf(owner, layer.layer, 0, begin + row, head, i);
  });
}

Rows ValuesOf(uint64_t owner, const LayerCard& layer, int64_t begin, int64_t n, DType dtype) {
  return MakeRows(dtype, n, layer.kv_heads, layer.value_dim, [&](int64_t row, int64_t head, int64_t i) {
    return ElementOf(owner, layer.layer, 1, begin + row, head, i);
  });
}

int64_t Oracle::Whole() const {
  int64_t whole = End(0);
  for (size_t layer = 1; layer < rows_.size(); ++layer) whole = std::min(whole, End(layer));
  return whole;
}

int64_t Oracle::Held() const {
  const int64_t whole = Whole();
  int64_t held = 0;
  for (int64_t token = 0; token < whole; ++token) held += Holds(token) ? 1 : 0;
  return held;
}

void Oracle::Append(size_t layer, const RowTensor& keys, const RowTensor& values, const int64_t* positions,
                    const int32_t* token_ids) {
  for (int64_t row = 0; row < keys.rows; ++row) {
    auto made = std::make_shared<Row>();
    for (int64_t head = 0; head < keys.heads; ++head) {
      made->keys.push_back(Stored(keys, row, head, options_.stored_dtype, options_.normalise_keys));
      made->values.push_back(Stored(values, row, head, options_.stored_dtype, false));
    }
    const int64_t token = End(layer);
    rows_[layer].push_back(std::move(made));
    if (token < Known()) continue;
    positions_.push_back(positions != nullptr ? positions[row] : token);
    token_ids_.push_back(token_ids != nullptr ? token_ids[row] : -1);
  }
  if (options_.max_tokens > 0 && Held() > options_.max_tokens) {
    first_kept_ = Whole() - (options_.max_tokens - std::min(options_.pinned_tokens, Whole()));
  }
}

void Oracle::Cut(int64_t tokens) {
  const auto size = static_cast<size_t>(tokens);
  for (auto& layer : rows_) layer.resize(std::min(layer.size(), size));
  positions_.resize(std::min(positions_.size(), size));
  token_ids_.resize(std::min(token_ids_.size(), size));
}

void Oracle::Truncate(int64_t tokens) {
  Cut(tokens);
  first_kept_ = std::min(first_kept_, tokens);
}

void Oracle::Evict(int64_t keep_tokens) {
  const int64_t whole = Whole();
  if (Held() <= keep_tokens) return;
  first_kept_ = whole - (keep_tokens - std::min(options_.pinned_tokens, whole));
}

void AppendTokens(Memory& memory, Oracle* oracle, uint64_t owner, int64_t begin, int64_t n) {
  for (size_t layer = 0; layer < memory.card().layers.size(); ++layer) {
    const LayerCard& card = memory.card().layers[layer];
    const Rows keys = KeysOf(owner, card, begin, n);
    const Rows values = ValuesOf(owner, card, begin, n);
    ASSERT_OK(memory.Append(card.layer, keys.tensor, values.tensor, nullptr, nullptr));
    if (oracle != nullptr) oracle->Append(layer, keys.tensor, values.tensor, nullptr, nullptr);
  }
}

void ExpectHolds(const Memory& memory, const Oracle& oracle) {
  const MemoryInfo info = memory.Info();
  EXPECT_EQ(info.next_token, oracle.Whole());
  EXPECT_EQ(info.tokens, oracle.Held());
  EXPECT_EQ(info.first_kept, oracle.first_kept());
  for (size_t layer = 0; layer < oracle.card().layers.size(); ++layer) {
    const LayerCard& card = oracle.card().layers[layer];
    for (int64_t begin = 0; begin < oracle.End(layer);) {
      if (!oracle.Holds(begin)) {
        ReadRequest request;
        request.layer = card.layer;
        request.begin = begin;
        request.tokens = 1;
        EXPECT_TRUE(absl::IsOutOfRange(memory.Read(request))) << "token " << begin;
        begin = oracle.first_kept();
        continue;
      }
      int64_t end = begin;
      while (end < oracle.End(layer) && oracle.Holds(end)) ++end;
      Rows keys = MakeRows(DType::kF32, end - begin, card.kv_heads, card.key_dim, [](auto...) { return 0.0f; });
      Rows values = MakeRows(DType::kF32, end - begin, card.kv_heads, card.value_dim, [](auto...) { return 0.0f; });
      std::vector<int64_t> positions(static_cast<size_t>(end - begin));
      std::vector<int32_t> token_ids(positions.size());
      const auto out = [](Rows& rows) {
        const RowTensor& t = rows.tensor;
        return MutableRowTensor{rows.bytes.data(), t.dtype, t.rows, t.heads, t.dim, t.row_stride, t.head_stride};
      };
      ReadRequest request{card.layer, begin, end - begin, out(keys), out(values), positions.data(), token_ids.data()};
      ASSERT_OK(memory.Read(request));
      for (int64_t token = begin; token < end; ++token) {
        ASSERT_EQ(positions[static_cast<size_t>(token - begin)], oracle.Position(token)) << "token " << token;
        ASSERT_EQ(token_ids[static_cast<size_t>(token - begin)], oracle.TokenId(token)) << "token " << token;
        const Oracle::Row& row = oracle.At(layer, token);
        const auto same = [&](const RowTensor& tensor, int64_t head, const std::vector<double>& wanted) {
          const auto* got = static_cast<const float*>(tensor.Row(token - begin, head));
          for (size_t i = 0; i < wanted.size(); ++i) {
            if (static_cast<double>(got[i]) != wanted[i]) return false;
          }
          return true;
        };
        for (int64_t head = 0; head < card.kv_heads; ++head) {
          ASSERT_TRUE(same(keys.tensor, head, row.keys[static_cast<size_t>(head)]))
              << "keys of layer " << card.layer << " head " << head << " token " << token;
          ASSERT_TRUE(same(values.tensor, head, row.values[static_cast<size_t>(head)]))
              << "values of layer " << card.layer << " head " << head << " token " << token;
        }
      }
      begin = end;
    }
  }
}

}  // namespace mneme
