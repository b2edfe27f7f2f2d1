// SPDX-License-Identifier: Apache-2.0
// A sequence's attention has the same bits alone and in a batch with others, with a memory and without.

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <numeric>
#include <string>
#include <vector>

#include "tests/capi/testing.h"

namespace mneme {
namespace {

constexpr int kSequences = 4;

// Sequence i has queries + local[i] local rows.
struct Case {
  int64_t group, kv_heads, dim, queries;
  std::array<int64_t, kSequences> local;
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
                                        << ", queries " << c.queries << ", local " << c.local[0] << ", fusion "
                                        << fusion);
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
    std::vector<int64_t> queries(kSequences, c.queries), local(c.local.begin(), c.local.end());
    for (int64_t& rows : local) rows += c.queries;
    const auto begin = local.begin() + first;
    const int64_t locals = std::accumulate(begin, begin + n, int64_t{0});
    Tensor query({c.queries * n, heads, c.dim}), output({c.queries * n, heads, c.dim});
    Tensor keys({locals, c.kv_heads, c.dim}), values({locals, c.kv_heads, c.dim});
    Cut(query, queries, first, 1);
    Cut(keys, local, first, 2);
    Cut(values, local, first, 3);
    std::vector<mneme_memory*> memories;
    std::vector<int64_t> query_offsets{0}, local_offsets{0};
    for (int i = 0; i < n; ++i) {
      memories.push_back((first + i) % 2 == 0 ? memory : nullptr);
      query_offsets.push_back((i + 1) * c.queries);
      local_offsets.push_back(local_offsets.back() + local[static_cast<size_t>(first + i)]);
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

  // Fills `tensor` with the rows of the sequences from `first` on, of all of which `rows` has the numbers of rows.
  static void Cut(Tensor& tensor, const std::vector<int64_t>& rows, int first, uint32_t seed) {
    const int64_t row = tensor.shape[1] * tensor.shape[2];
    Tensor whole({std::accumulate(rows.begin(), rows.end(), int64_t{0}), tensor.shape[1], tensor.shape[2]});
    whole.Fill(seed);
    for (float& x : whole.data) x *= 4;
    const int64_t before = std::accumulate(rows.begin(), rows.begin() + first, int64_t{0});
    std::copy_n(whole.data.begin() + before * row, tensor.data.size(), tensor.data.begin());
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
        for (const float scale : {of_float, of_double}) {
          Check({group, kv_heads, dim, queries, {67, 67, 67, 67}}, scale);
          Check({group, kv_heads, dim, queries, {0, 900, 333, 21}}, scale);
        }
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Groups, BatchTest, ::testing::Range<int64_t>(1, 9));

}  // namespace
}  // namespace mneme
