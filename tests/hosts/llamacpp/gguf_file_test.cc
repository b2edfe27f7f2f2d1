// SPDX-License-Identifier: Apache-2.0
#include "hosts/llamacpp/src/gguf_file.h"

#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "ggml.h"
#include "gguf.h"
#include "gtest/gtest.h"

namespace mneme::llama {
namespace {

// A model file with one tensor; removed at the end.
class TinyFile {
 public:
  TinyFile(const std::string& tensor, std::vector<float> values, const std::string& name = "tiny")
      : path_((std::filesystem::path(::testing::TempDir()) /
               ("mneme-" + std::to_string(::testing::UnitTest::GetInstance()->random_seed()) + name +
                std::to_string(reinterpret_cast<uintptr_t>(this)) + ".gguf"))
                  .string()) {
    const std::unique_ptr<ggml_context, decltype(&ggml_free)> memory(ggml_init({1 << 20, nullptr, /*no_alloc=*/false}),
                                                                     &ggml_free);
    ggml_tensor* made = ggml_new_tensor_1d(memory.get(), GGML_TYPE_F32, static_cast<int64_t>(values.size()));
    ggml_set_name(made, tensor.c_str());
    std::copy(values.begin(), values.end(), static_cast<float*>(made->data));
    const std::unique_ptr<gguf_context, decltype(&gguf_free)> gguf(gguf_init_empty(), &gguf_free);
    gguf_set_val_str(gguf.get(), "general.name", name.c_str());
    gguf_add_tensor(gguf.get(), made);
    gguf_write_to_file(gguf.get(), path_.c_str(), /*only_meta=*/false);
  }
  ~TinyFile() { std::remove(path_.c_str()); }
  const std::string& path() const { return path_; }

 private:
  const std::string path_;
};

std::string FingerprintOf(const TinyFile& file) {
  std::string fingerprint;
  const Status status = ReadFingerprint(file.path(), &fingerprint);
  EXPECT_TRUE(status.ok()) << status.message();
  return fingerprint;
}

TEST(GgufFileTest, FingerprintChangesWithWeightsAndMetadata) {
  const std::string fingerprint = FingerprintOf(TinyFile("w", {1, 2, 3}));
  EXPECT_EQ(fingerprint.size(), 21u);
  EXPECT_EQ(FingerprintOf(TinyFile("w", {1, 2, 3})), fingerprint);
  EXPECT_NE(FingerprintOf(TinyFile("w", {1, 2, 4})), fingerprint);
  EXPECT_NE(FingerprintOf(TinyFile("v", {1, 2, 3})), fingerprint);
  EXPECT_NE(FingerprintOf(TinyFile("w", {1, 2, 3}, "other")), fingerprint);
}

TEST(GgufFileTest, SaysWhatItCannotRead) {
  std::string fingerprint;
  EXPECT_EQ(ReadFingerprint("/nowhere/model.gguf", &fingerprint).code(), MNEME_STATUS_NOT_FOUND);
  const TinyFile file("w", std::vector<float>(4096, 1.0f));
  std::filesystem::resize_file(file.path(), std::filesystem::file_size(file.path()) - 8192);
  EXPECT_FALSE(ReadFingerprint(file.path(), &fingerprint).ok());
}

}  // namespace
}  // namespace mneme::llama
