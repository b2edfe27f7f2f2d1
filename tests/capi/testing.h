// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_TESTS_CAPI_TESTING_H_
#define MNEME_TESTS_CAPI_TESTING_H_

#include <sys/types.h>

#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "base/temporary_folder.h"
#include "mneme.h"

namespace mneme {

#define EXPECT_OK(call) EXPECT_EQ((call), MNEME_OK) << mneme_last_error()
#define ASSERT_OK(call) ASSERT_EQ((call), MNEME_OK) << mneme_last_error()

// `status` is `expected`, and the thread's message names `argument`; a message about a value also says what was
// expected and what came.
void ExpectRefused(mneme_status status, mneme_status expected, const std::string& argument);

// A folder of its own for one test, removed at its end.
class TempFolder {
 public:
  explicit TempFolder(const std::string& root = ::testing::TempDir()) : folder_(root) {}

  std::string store() const { return path() + "/store"; }
  const std::string& path() const { return folder_.path(); }

 private:
  const TemporaryFolder folder_;
};

// Starts the running test once more, alone in a process of its own, where ChildArgument() is `argument`. (A plain fork
// would lack the background threads that RocksDB believes to have.)
pid_t SpawnThisTest(const std::string& argument);
// Null in the process that was started first.
const char* ChildArgument();
// The exit status of a child; 1000 and more for one that a signal ended.
int WaitFor(pid_t child);

// Bytes of address space that this process uses.
size_t AddressSpace();

// A buffer for an output that shall not be written.
template <typename T>
class Guarded {
 public:
  explicit Guarded(size_t n) : values_(n) { std::memset(values_.data(), kByte, n * sizeof(T)); }
  T* data() { return values_.data(); }
  bool Untouched() const {
    const auto* bytes = reinterpret_cast<const unsigned char*>(values_.data());
    for (size_t i = 0; i < values_.size() * sizeof(T); ++i) {
      if (bytes[i] != kByte) return false;
    }
    return true;
  }

 private:
  static constexpr unsigned char kByte = 0x5a;
  std::vector<T> values_;
};

// A row-major f32 tensor with memory of its own; `view` is what the calls get, and tests may spoil it.
struct Tensor {
  explicit Tensor(std::vector<int64_t> extents);
  Tensor(const Tensor&) = delete;
  Tensor& operator=(const Tensor&) = delete;

  // Numbers in [-0.5, 0.5) that depend on `seed` and the place.
  void Fill(uint32_t seed);
  void FillGuard() { std::memset(data.data(), 0x5a, data.size() * sizeof(float)); }
  bool Guarded() const;

  std::vector<float> data;
  std::vector<int64_t> shape;
  std::vector<int64_t> strides;
  mneme_tensor view;
};

// The model that the tests speak of: layers 3 and 7, 4 query heads, 2 KV heads, keys of 8 and values of 6 dims.
inline constexpr int32_t kLayer = 3, kOtherLayer = 7;
inline constexpr int64_t kQueryHeads = 4, kKvHeads = 2, kKeyDim = 8, kValueDim = 6;

mneme_layer_desc LayerDesc(int32_t layer);
mneme_card* NewCard(const char* model_name = "model", int32_t value_dim = kValueDim);
mneme_status AppendTokens(mneme_memory* memory, int32_t layer, int64_t tokens, uint32_t seed = 1);
// The same of a layer of another shape.
mneme_status AppendTokens(mneme_memory* memory, int32_t layer, int64_t tokens, int64_t kv_heads, int64_t key_dim,
                          int64_t value_dim, uint32_t seed);
mneme_memory_info InfoOf(mneme_memory* memory);

// Everything that can be seen of a memory, to compare it before and after a call.
std::string StateOf(mneme_memory* memory);

// An open store with one memory "m": 256 sealed tokens, 44 committed ones in the tail, 10 pending ones, of which layer
// 7 lacks the last 3.
class CapiTest : public ::testing::Test {
 protected:
  static constexpr int64_t kTokens = 307;

  CapiTest();
  ~CapiTest() override;

  mneme_memory* NewMemory(const std::string& name, const mneme_memory_options* options = nullptr);

  TempFolder folder_;
  mneme_store* store_ = nullptr;
  mneme_card* card_ = nullptr;
  mneme_memory* memory_ = nullptr;
};

}  // namespace mneme

#endif  // MNEME_TESTS_CAPI_TESTING_H_
