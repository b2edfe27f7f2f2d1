// SPDX-License-Identifier: Apache-2.0
// A sequence's attention has the same bits alone and in a batch with others, with a memory and without.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <string>
#include <vector>

#include "tests/capi/testing.h"

namespace mneme {
namespace {

constexpr int kSequences = 4;

struct Case {
  int64_t group, kv_heads, dim, queries, local;
};

class BatchTest : public ::testing::TestWithParam<int64_t> {
 protected:
  BatchTest() { EXPECT_OK(mneme_store_open(folder_.store().c_str(), nullptr, &store_)); }
  ~BatchTest() override { EXPECT_OK(mneme_store_close(store_)); }

  // `scale` is the card's. Sequences 0 and 2 have a memory.
  void Check(const Case& c, float scale) {
    mneme_card* card = nullptr;
    ASSERT_OK(mneme_card_create("model", "sha256:0", &card));
    mneme_layer_desc desc = MNEME_LAYER_DESC_INIT;
    desc.layer = kLayer;
    desc.q_heads = static_cast<int32_t>(c.group * c.kv_heads);
    desc.kv_heads = static_cast<int32_t>(c.kv_heads);
    desc.key_dim = static_cast<int32_t>(c.dim);
    desc.value_dim = static_cast<int32_t>(c.dim);
    desc.scale = scale;
    ASSERT_OK(mneme_card_add_layer(card, &desc));
    mneme_memory* memory = nullptr;
    ASSERT_OK(mneme_memory_create(store_, "m", card, nullptr, &memory));
    ASSERT_OK(AppendTokens(memory, kLayer, 700, c.kv_heads, c.dim, c.dim, 9));
    for (const int fusion : {MNEME_FUSION_JOINT, MNEME_FUSION_GATED}) {
      SCOPED_TRACE(::testing::Message() << "group " << c.group << ", dim " << c.dim << ", scale " << scale
                                        << ", queries " << c.queries << ", local " << c.local << ", fusion " << fusion);
      Compare(c, memory, fusion);
    }
    EXPECT_OK(mneme_memory_close(memory));
    EXPECT_OK(mneme_memory_drop(store_, "m"));
    mneme_card_release(card);
  }

 private:
  static void Compare(const Case& c, mneme_memory* memory, int fusion) {
    const std::vector<float> together = Attend(c, memory, fusion, 0, kSequences);
    const size_t each = together.size() / kSequences;
    for (int i = 0; i < kSequences; ++i) {
      const std::vector<float> alone = Attend(c, memory, fusion, i, 1);
      ASSERT_EQ(alone.size(), each);
      EXPECT_EQ(std::memcmp(alone.data(), together.data() + static_cast<size_t>(i) * each, each * sizeof(float)), 0)
          << "sequence " << i;
    }
  }

  // Sequences [first, first + n) in one call.
  static std::vector<float> Attend(const Case& c, mneme_memory* memory, int fusion, int first, int n) {
    const int64_t heads = c.group * c.kv_heads;
    Tensor query({c.queries * n, heads, c.dim}), output({c.queries * n, heads, c.dim});
    Tensor keys({c.local * n, c.kv_heads, c.dim}), values({c.local * n, c.kv_heads, c.dim});
    Cut(query, first, n, 1);
    Cut(keys, first, n, 2);
    Cut(values, first, n, 3);
    std::vector<mneme_memory*> memories;
    std::vector<int64_t> query_offsets{0}, local_offsets{0};
    for (int i = 0; i < n; ++i) {
      memories.push_back((first + i) % 2 == 0 ? memory : nullptr);
      query_offsets.push_back((i + 1) * c.queries);
      local_offsets.push_back((i + 1) * c.local);
    }
    const std::vector<float> gate(static_cast<size_t>(heads), 0.4f);
    mneme_attend_args args = MNEME_ATTEND_ARGS_INIT;
    args.layer = kLayer;
    args.query = &query.view;
    args.output = &output.view;
    args.local_keys = &keys.view;
    args.local_values = &values.view;
    args.query_offsets = query_offsets.data();
    args.local_offsets = local_offsets.data();
    args.fusion = fusion;
    args.gate = gate.data();
    args.default_top_k = 8;
    EXPECT_OK(mneme_attend(memories.data(), static_cast<size_t>(n), &args));
    return output.data;
  }

  // The numbers of `n` sequences from `first` on.
  static void Cut(Tensor& tensor, int first, int n, uint32_t seed) {
    std::vector<int64_t> shape = tensor.shape;
    shape[0] = shape[0] / n * kSequences;
    Tensor whole(shape);
    whole.Fill(seed);
    for (float& x : whole.data) x *= 4;
    const size_t each = whole.data.size() / kSequences;
    std::copy_n(whole.data.begin() + static_cast<std::ptrdiff_t>(static_cast<size_t>(first) * each), tensor.data.size(),
                tensor.data.begin());
  }

  TempFolder folder_;
  mneme_store* store_ = nullptr;
};

TEST_P(BatchTest, ASequenceHasTheSameBitsAloneAndWithOthers) {
  const int64_t group = GetParam();
  for (const int64_t dim : {64, 96, 72, 7}) {
    for (const int64_t kv_heads : {1, 2}) {
      for (const int64_t queries : {1, 5, 40}) {
        // As a host in float rounds it, and as one in double does.
        const float of_float = 1.0f / std::sqrt(static_cast<float>(dim));
        const auto of_double = static_cast<float>(1.0 / std::sqrt(static_cast<double>(dim)));
        for (const float scale : {of_float, of_double}) Check({group, kv_heads, dim, queries, queries + 67}, scale);
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Groups, BatchTest, ::testing::Range<int64_t>(1, 9));

}  // namespace
}  // namespace mneme
