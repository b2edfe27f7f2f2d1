// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_TESTS_CAPI_DEVICE_TESTING_H_
#define MNEME_TESTS_CAPI_DEVICE_TESTING_H_

#include <cstdint>
#include <functional>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "attention/cuda/runtime.h"
#include "base/dtype.h"
#include "tests/capi/testing.h"

namespace mneme {

// A row-major tensor of f32, f16 or bf16 that owns its host memory.
struct AnyTensor {
  AnyTensor() = default;
  AnyTensor(DType dtype, std::vector<int64_t> extents);
  AnyTensor(const AnyTensor&) = delete;
  AnyTensor& operator=(const AnyTensor&) = delete;
  void Make(DType dtype, std::vector<int64_t> extents);

  int64_t count() const;
  void Fill(std::mt19937& random);
  std::vector<float> Floats() const;

  std::vector<char> data;
  std::vector<int64_t> shape;
  mneme_tensor view = {};
};

// A copy of a tensor on the device, made and freed on `stream`. gap: unused elements behind each row of heads.
class OnDevice {
 public:
  OnDevice(cuda::Runtime& runtime, void* stream, AnyTensor& source, int64_t gap = 0);
  ~OnDevice();
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

  // Queues a copy from the device to the source, or to another tensor of its shape.
  void Fetch() { Copy(source_, false); }
  void Fetch(AnyTensor& to) { Copy(to, false); }
  // Queues a copy to the device.
  void Send(AnyTensor& from) { Copy(from, true); }

  mneme_tensor view;

 private:
  void Copy(AnyTensor& host, bool to_device);

  cuda::Runtime& runtime_;
  void* const stream_;
  AnyTensor& source_;
  std::vector<int64_t> strides_;
  void* data_ = nullptr;
};

// The arguments of a call of mneme_attend, in host memory. Both stores get the same.
struct TwinCall {
  int32_t layer = 3;
  std::vector<std::string> memories;  // [batch]; "": none
  std::vector<int64_t> query_offsets, local_offsets, memory_begin, memory_end, positions, top_k;
  std::vector<float> bias, decay, gate;
  AnyTensor query, local_keys, local_values;
  bool snapshots = false;  // whether to attend to the snapshots of TakeSnapshots
  mneme_attend_args args = MNEME_ATTEND_ARGS_INIT;
  DType output_dtype = DType::kF32;
  // For the store with the device: the tensors lie on it, and the call uses the test's stream.
  bool on_device = false;
  bool has_stream = true;
  bool host_outputs = true;
  int64_t local_gap = 0;
};

struct TwinAnswer {
  mneme_status status = MNEME_OK;
  std::string error;
  std::vector<int64_t> found;
  std::vector<float> scores, output, log_sum_exp, mass;
};

// Two stores that get the same calls: one with the device, one with the CPU alone. Layer 3 has 4 query and 2 KV heads
// of key and value dims 64 and 128, layer 7 has 6 query heads and 1 KV head of dims 128 and 64. The program links the
// emulated or the real device. Without a device the tests are skipped.
class TwinTest : public ::testing::Test {
 public:
  static int64_t QueryHeads(int32_t layer) { return layer == 3 ? 4 : 6; }
  static int64_t KvHeads(int32_t layer) { return layer == 3 ? 2 : 1; }
  static int64_t KeyDim(int32_t layer) { return layer == 3 ? 64 : 128; }
  static int64_t ValueDim(int32_t layer) { return layer == 3 ? 128 : 64; }

 protected:
  TwinTest();
  ~TwinTest() override;
  void SetUp() override;

  // Returns: how often the host has waited for the device so far; 0 if the device does not count.
  virtual int64_t Waits() const { return 0; }

  void OpenStores(int64_t budget_bytes = int64_t{64} << 20);
  // The same, with a memory "m" of `tokens` tokens, stored as f16.
  void OpenWith(int64_t tokens);
  void CloseStores();  // and all memories
  // Returns: options of memories with short segments.
  static mneme_memory_options Options(DType stored, int64_t max_tokens = 0, int64_t pinned_tokens = 0);
  void Create(const std::string& name, const mneme_memory_options& options);
  void Open(const std::string& name);
  void Close(const std::string& name);
  // Runs `call` for the memories of that name in both stores.
  void Both(const std::string& name, const std::function<mneme_status(mneme_memory*)>& call);
  // Appends `n` random tokens to all layers in both stores.
  void Append(const std::string& name, int64_t n, DType dtype = DType::kF16);
  // The same; the store with the device gets tensors on the device.
  void AppendFromDevice(const std::string& name, int64_t n, DType dtype);
  // Random changes of a memory. ForkAnywhere returns the fork's name.
  void TruncateAnywhere(const std::string& name);
  void EvictSome(const std::string& name);
  std::string ForkAnywhere(const std::string& name);
  void TakeSnapshots(const std::string& name);
  void ReleaseSnapshots();
  int64_t NextToken(const std::string& name);

  // A plain call: one query a memory, 8 rows a head.
  void PlainCall(TwinCall& call, const std::vector<std::string>& names, DType dtype);
  // `queries` f16 queries for one memory, 256 rows a head.
  void PromptCall(TwinCall& call, const std::string& name, int64_t queries);
  // Random queries, local rows, ranges, rules, masks and fusion.
  void RandomCall(TwinCall& call, const std::vector<std::string>& names, DType dtype);
  TwinAnswer Attend(TwinCall& call, int store);
  // Does not wait for the output: after the stream's work has run, finish(answer) takes it.
  TwinAnswer Attend(TwinCall& call, int store, std::function<void(TwinAnswer&)>* finish);
  void ExpectSame(const TwinAnswer& device, const TwinAnswer& cpu, DType output_dtype);
  // Expects equal rows from both stores, and numbers that are equal within rounding.
  void ExpectSame(TwinCall& call);

  mneme_store_stats Stats(int store = 0);

  std::mt19937 random_;
  int forks_ = 0;
  TempFolder folders_[2];
  mneme_card* card_ = nullptr;
  mneme_store* stores_[2] = {};
  std::map<std::string, std::vector<mneme_memory*>> memories_;
  std::map<std::string, std::vector<mneme_snapshot*>> snapshots_;
  std::vector<std::string> log_;  // of the store with the device
  std::unique_ptr<cuda::Runtime> runtime_;
  void* stream_ = nullptr;
  mneme_stream call_stream_ = {};  // the same, as calls take it
  void* event_ = nullptr;
  // Waits for the work on the test's stream.
  void Finish();

  int64_t waited_ = 0;  // how often the last call of the store with the device made the host wait
};

// Expects numbers that differ by at most bound * (1 + |expected|).
void ExpectNear(const std::vector<float>& actual, const std::vector<float>& expected, float bound, const char* what);

// The seed of random tests: MNEME_TEST_SEED, or 1.
uint32_t TestSeed();

}  // namespace mneme

#endif  // MNEME_TESTS_CAPI_DEVICE_TESTING_H_
