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

// What stays the same of a captured step; the rules are those of all heads.
struct DecodingRules {
  DType type = DType::kF16;  // of queries and local rows
  DType output = DType::kF32;
  int64_t batch = 1;
  int64_t local_rows = 0;  // there is room for, of each sequence; 0: none
  int32_t fusion = MNEME_FUSION_JOINT;
  int32_t local_mask = MNEME_MASK_CAUSAL;
  int64_t mask_window = 4;
  int64_t top_k = 8;
  float bias = 0, decay = 0, gate = 0;
};

// One step: what goes in, what replays make of it and what it should be. Stays until its replay is done.
struct DecodingStep {
  struct Layer {
    AnyTensor query, keys, values, output, expected;
  };
  std::vector<mneme_memory*> memories[2];                     // of the store with the device, of the CPU's
  std::vector<int64_t> begin, end, local_offsets, positions;  // empty: NULL
  Layer layers[2];
};

// A host that decodes with a memory in layers 3 and 7: a step is captured once, one query a sequence, and replayed on a
// stream of the device.
class Decoding {
 public:
  Decoding(mneme_store* store, cuda::Runtime& runtime, void* stream, const DecodingRules& rules);
  ~Decoding();
  Decoding(const Decoding&) = delete;
  Decoding& operator=(const Decoding&) = delete;

  // The first layer's call, as it is captured.
  mneme_attend_args FirstArgs() const { return Args(0); }
  // The first status that is not MNEME_OK. Whether there is a graph then: ready().
  mneme_status Capture(const std::vector<mneme_memory*>& memories);
  bool ready() const { return host_graph_ != nullptr; }

  // Tensors at random.
  void Fill(DecodingStep& step, std::mt19937& random) const;
  mneme_status Update(const DecodingStep& step);
  // Has the tensors be the step's, replays, and has the step's outputs be what comes of it.
  void Replay(DecodingStep& step);
  // What the CPU makes of the step, now; `blind`: where nothing is visible of the memories.
  void Expect(DecodingStep& step, bool blind = false) const;
  // Once the replay is done.
  void Compare(const DecodingStep& step) const;

  mneme_graph* graph() const { return graph_; }

 private:
  struct Places {
    AnyTensor query, keys, values, output;  // of the right shapes, no more
    std::unique_ptr<OnDevice> on_query, on_keys, on_values, on_output;
  };
  void Shape(DecodingStep::Layer& layer, size_t number) const;
  mneme_attend_args Args(size_t number) const;

  const DecodingRules rules_;
  cuda::Runtime& runtime_;
  void* const stream_;
  mneme_graph* graph_ = nullptr;
  std::unique_ptr<HostGraph> host_graph_;
  Places places_[2];
  std::vector<int64_t> query_offsets_, local_offsets_;
  std::vector<float> bias_, decay_, gate_;
};

}  // namespace mneme

#endif  // MNEME_TESTS_CAPI_DEVICE_DECODING_H_
