// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_HOSTS_LLAMACPP_SRC_GRAPH_PROBE_H_
#define MNEME_HOSTS_LLAMACPP_SRC_GRAPH_PROBE_H_

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "ggml.h"
#include "hosts/llamacpp/src/model_shape.h"

namespace mneme::llama {

// Reads the attention of every layer from the nodes of one graph, in the order in which the graph has them. Nothing of
// the graph needs to be computed; masks and other inputs must be filled.
class GraphProbe {
 public:
  // tokens: of the graph, 2 or more, so that rows by heads can be told from flat ones.
  explicit GraphProbe(int64_t tokens) : tokens_(tokens) {}

  void Add(const ggml_tensor& node);
  // After the last node. By layer; LayerShape::refusal says why a layer cannot have a memory.
  std::map<int32_t, LayerShape> Layers() const;
  // Whether positions enter by a table of the model, which ends with the trained context (GPT-2).
  bool has_learned_positions() const { return learned_positions_; }
  // Layers whose last token sees fewer than `cells` cells of the cache.
  std::set<int32_t> LayersThatSeeLess(int64_t cells) const;

 private:
  Status ReadLayer(const ggml_tensor& output, LayerShape* layer) const;
  // What the graph writes to the part of the cache that `cells` is a view of.
  const ggml_tensor* FindStored(const ggml_tensor& cells) const;

  const int64_t tokens_;
  std::map<std::pair<std::string, int>, int> marks_;  // how many nodes have this name and operation
  std::vector<const ggml_tensor*> stores_;            // SET_ROWS
  std::map<int32_t, LayerShape> layers_;
  bool learned_positions_ = false;
  std::map<int32_t, int64_t> seen_;  // cells that the last token of a layer sees
};

}  // namespace mneme::llama

#endif  // MNEME_HOSTS_LLAMACPP_SRC_GRAPH_PROBE_H_
