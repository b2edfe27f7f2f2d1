// SPDX-License-Identifier: Apache-2.0
#include <utility>

#include "tests/attention/cuda/emulated_runtime.h"
#include "tests/capi/device/host_graph.h"

namespace mneme {
namespace {

using cuda::EmulatedDevice;

class EmulatedGraph final : public HostGraph {
 public:
  explicit EmulatedGraph(std::unique_ptr<EmulatedDevice::Graph> graph) : graph_(std::move(graph)) {}
  void Replay(void* stream) override { EmulatedDevice::Get().Replay(*graph_, stream); }

 private:
  const std::unique_ptr<EmulatedDevice::Graph> graph_;
};

}  // namespace

void HostGraph::BeginCapture(void* stream) {
  EmulatedDevice::Get().BeginCapture(stream);
}

std::unique_ptr<HostGraph> HostGraph::EndCapture(void* stream) {
  std::unique_ptr<EmulatedDevice::Graph> graph = EmulatedDevice::Get().EndCapture(stream);
  return graph == nullptr ? nullptr : std::make_unique<EmulatedGraph>(std::move(graph));
}

}  // namespace mneme
