// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_TESTS_CAPI_DEVICE_DECODING_H_
#define MNEME_TESTS_CAPI_DEVICE_DECODING_H_

#include <cstdint>
#include <memory>
#include <random>
#include <vector>

#include "tests/capi/device/host_graph.h"
#include "tests/capi/device/testing.h"

namespace mneme {

// What all replays of a captured step share. All heads have the same rules.
struct DecodingRules {
  DType type = DType::kF16;  // of queries and local rows
  DType output = DType::kF32;
  int64_t batch = 1;
  int64_t local_rows = 0;  // the most of each sequence; 0: none
  int32_t fusion = MNEME_FUSION_JOINT;
  int32_t local_mask = MNEME_MASK_CAUSAL;
  int64_t mask_window = 4;
  int64_t top_k = 8;
  float bias = 0, decay = 0, gate = 0;
};

// One step: its inputs, the output of its replay and the expected output. It must stay until the replay has run.
struct DecodingStep {
  struct Layer {
    AnyTensor query, keys, values, output, expected;
  };
  std::vector<mneme_memory*> memories[2];                     // of the store with a device, and of the other one
  std::vector<int64_t> begin, end, local_offsets, positions;  // empty: NULL
  Layer layers[2];
};

// A host that decodes with a memory in layers 3 and 7. It captures a step of one query a sequence once and replays it
// on a stream of the device.
class Decoding {
 public:
  Decoding(mneme_store* store, cuda::Runtime& runtime, void* stream, const DecodingRules& rules);
  ~Decoding();
  Decoding(const Decoding&) = delete;
  Decoding& operator=(const Decoding&) = delete;

  // Returns: the captured call of the first layer.
  mneme_attend_args FirstArgs() const { return Args(0); }
  // Returns: the first status that is not MNEME_OK. ready() says whether there is a graph.
  mneme_status Capture(const std::vector<mneme_memory*>& memories);
  bool ready() const { return host_graph_ != nullptr; }

  // Fills the step's input tensors at random.
  void Fill(DecodingStep& step, std::mt19937& random) const;
  mneme_status Update(const DecodingStep& step);
  // Queues copies of the step's inputs to the device, a replay, and copies of the outputs to the step.
  void Replay(DecodingStep& step);
  // Computes the expected outputs on the CPU from the present memories. blind: as if no memory were visible.
  void Expect(DecodingStep& step, bool blind = false) const;
  // Requires: the replay has run.
  void Compare(const DecodingStep& step) const;

  mneme_graph* graph() const { return graph_; }

 private:
  struct Tensors {
    AnyTensor query, keys, values, output;  // for their shapes alone
    std::unique_ptr<OnDevice> on_query, on_keys, on_values, on_output;
  };
  void Shape(DecodingStep::Layer& layer, size_t number) const;
  mneme_attend_args Args(size_t number) const;

  const DecodingRules rules_;
  cuda::Runtime& runtime_;
  void* const stream_;
  const mneme_stream call_stream_ = {stream_};
  mneme_graph* graph_ = nullptr;
  std::unique_ptr<HostGraph> host_graph_;
  Tensors tensors_[2];
  std::vector<int64_t> query_offsets_, local_offsets_;
  std::vector<float> bias_, decay_, gate_;
};

}  // namespace mneme

#endif  // MNEME_TESTS_CAPI_DEVICE_DECODING_H_
