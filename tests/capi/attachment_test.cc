// SPDX-License-Identifier: Apache-2.0
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "tests/capi/testing.h"

namespace mneme {
namespace {

using AttachmentTest = CapiTest;

struct Listed {
  std::string name;
  size_t size;
  int64_t tokens;
  bool operator==(const Listed&) const = default;
};

std::vector<Listed> List(mneme_memory* memory, size_t most = 100) {
  struct Context {
    std::vector<Listed> listed;
    size_t most;
  } context{{}, most};
  const auto visit = [](void* opaque, const char* name, size_t size, int64_t tokens) {
    Context& seen = *static_cast<Context*>(opaque);
    seen.listed.push_back({name, size, tokens});
    return seen.listed.size() == seen.most ? 1 : 0;
  };
  EXPECT_OK(mneme_memory_list_attachments(memory, visit, &context));
  return context.listed;
}

TEST_F(AttachmentTest, IsReadAsItWasSet) {
  const std::string bytes("some\0bytes", 10);
  ASSERT_OK(mneme_memory_set_attachment(memory_, "b", bytes.data(), bytes.size(), 300));
  ASSERT_OK(mneme_memory_set_attachment(memory_, "a", "", 0, 0));
  ASSERT_OK(mneme_memory_commit(memory_, MNEME_DURABILITY_BUFFERED, nullptr));
  size_t size = 0;
  int64_t tokens = 0;
  ASSERT_OK(mneme_memory_get_attachment(memory_, "b", nullptr, 0, &size, &tokens));
  EXPECT_EQ(size, bytes.size());
  EXPECT_EQ(tokens, 300);
  std::string read(12, 'x');
  ASSERT_OK(mneme_memory_get_attachment(memory_, "b", read.data(), read.size(), nullptr, nullptr));
  EXPECT_EQ(read, bytes + "xx");
  EXPECT_EQ(List(memory_), (std::vector<Listed>{{"a", 0, 0}, {"b", 10, 300}}));
  EXPECT_EQ(List(memory_, 1).size(), 1u);
  EXPECT_EQ(InfoOf(memory_).attachment_bytes, 10);
  ASSERT_OK(mneme_memory_set_attachment(memory_, "b", nullptr, 0, 0));
  ASSERT_OK(mneme_memory_set_attachment(memory_, "never there", nullptr, 0, 0));
  EXPECT_EQ(List(memory_).size(), 1u);
  EXPECT_EQ(mneme_memory_get_attachment(memory_, "b", nullptr, 0, &size, &tokens), MNEME_STATUS_NOT_FOUND);
}

TEST_F(AttachmentTest, RefusesWrongArguments) {
  const auto set = [&](const char* name, const void* bytes, size_t size, int64_t tokens) {
    return mneme_memory_set_attachment(memory_, name, bytes, size, tokens);
  };
  ExpectRefused(set(nullptr, "b", 1, 0), MNEME_STATUS_INVALID_ARGUMENT, "name");
  ExpectRefused(set("", "b", 1, 0), MNEME_STATUS_INVALID_ARGUMENT, "name");
  ExpectRefused(set(std::string(256, 'n').c_str(), "b", 1, 0), MNEME_STATUS_INVALID_ARGUMENT, "name");
  ExpectRefused(set("n", nullptr, 1, 0), MNEME_STATUS_INVALID_ARGUMENT, "bytes");
  ExpectRefused(set("n", "b", std::numeric_limits<size_t>::max(), 0), MNEME_STATUS_INVALID_ARGUMENT, "size");
  const int64_t next = InfoOf(memory_).next_token;
  for (const int64_t tokens : {int64_t{-1}, next + 1, std::numeric_limits<int64_t>::max()}) {
    ExpectRefused(set("n", "b", 1, tokens), MNEME_STATUS_OUT_OF_RANGE, "tokens");
  }
  EXPECT_TRUE(List(memory_).empty());
  ASSERT_OK(set("n", "some", 4, next));
  Guarded<char> bytes(4);
  size_t size = 0;
  ExpectRefused(mneme_memory_get_attachment(memory_, "n", bytes.data(), 3, &size, nullptr),
                MNEME_STATUS_INVALID_ARGUMENT, "capacity");
  EXPECT_EQ(size, 4u);
  EXPECT_TRUE(bytes.Untouched());
  ExpectRefused(mneme_memory_get_attachment(memory_, nullptr, bytes.data(), 4, nullptr, nullptr),
                MNEME_STATUS_INVALID_ARGUMENT, "name");
  ExpectRefused(mneme_memory_list_attachments(memory_, nullptr, nullptr), MNEME_STATUS_INVALID_ARGUMENT, "visitor");
}

}  // namespace
}  // namespace mneme
