// SPDX-License-Identifier: Apache-2.0
#include "capi/src/metrics.h"

#include "absl/strings/str_cat.h"

namespace mneme::capi {
namespace {

enum class MetricType { kGauge, kCounter };

struct Metric {
  const char* name;
  MetricType type;
  const char* help;
  int64_t mneme_store_stats::*value;
};

// In the order of the struct.
constexpr Metric kMetrics[] = {
    {"mneme_memories", MetricType::kGauge, "Memories in the store.", &mneme_store_stats::memories},
    {"mneme_open_memories", MetricType::kGauge, "Memories that are open.", &mneme_store_stats::open_memories},
    {"mneme_disk_bytes", MetricType::kGauge, "Size of the store's folder.", &mneme_store_stats::disk_bytes},
    {"mneme_ram_bytes", MetricType::kGauge, "Rows, codes and indices in memory.", &mneme_store_stats::ram_bytes},
    {"mneme_appended_bytes_total", MetricType::kCounter, "Rows that were committed.",
     &mneme_store_stats::appended_bytes},
    {"mneme_written_bytes_total", MetricType::kCounter, "Bytes written to disk: log, flushes, compaction.",
     &mneme_store_stats::written_bytes},
    {"mneme_indexes_built_total", MetricType::kCounter, "Indices built.", &mneme_store_stats::indexes_built},
    {"mneme_indexes_loaded_total", MetricType::kCounter, "Indices loaded from disk.",
     &mneme_store_stats::indexes_loaded},
    {"mneme_indexes_rebuilt_total", MetricType::kCounter, "Indices built since the stored one was missing or damaged.",
     &mneme_store_stats::indexes_rebuilt},
    {"mneme_orphans_collected_total", MetricType::kCounter, "Segments and indices of commits that never ended.",
     &mneme_store_stats::orphans_collected},
    {"mneme_code_scanned_pairs_total", MetricType::kCounter, "Query-key pairs answered from the keys' codes.",
     &mneme_store_stats::code_scanned_pairs},
    {"mneme_key_scanned_pairs_total", MetricType::kCounter, "Query-key pairs answered from the keys.",
     &mneme_store_stats::key_scanned_pairs},
    {"mneme_reranked_pairs_total", MetricType::kCounter, "Pairs whose code did not rule the key out.",
     &mneme_store_stats::reranked_pairs},
    {"mneme_rescanned_pairs_total", MetricType::kCounter, "Pairs scanned twice.", &mneme_store_stats::rescanned_pairs},
    {"mneme_codes_loaded_total", MetricType::kCounter, "Codes loaded from disk, a layer of a segment each.",
     &mneme_store_stats::codes_loaded},
    {"mneme_codes_rebuilt_total", MetricType::kCounter, "Codes made from the keys, as they were missing or damaged.",
     &mneme_store_stats::codes_rebuilt},
    {"mneme_rows_read_total", MetricType::kCounter, "Single keys and values read from disk.",
     &mneme_store_stats::rows_read},
    {"mneme_device_bytes", MetricType::kGauge, "Device memory in use.", &mneme_store_stats::device_bytes},
    {"mneme_device_searched_sequences_total", MetricType::kCounter, "Sequences whose memory the device searched.",
     &mneme_store_stats::device_searched_sequences},
    {"mneme_device_fallback_sequences_total", MetricType::kCounter,
     "Sequences that the CPU searched although the store has a device.", &mneme_store_stats::device_fallback_sequences},
    {"mneme_device_copied_rows_total", MetricType::kCounter, "Tokens of a layer copied to the device.",
     &mneme_store_stats::device_copied_rows},
    {"mneme_host_staged_calls_total", MetricType::kCounter, "Calls whose device tensors passed through host memory.",
     &mneme_store_stats::host_staged_calls},
};

void AppendHeader(std::string& text, absl::string_view name, absl::string_view help, absl::string_view type) {
  absl::StrAppend(&text, "# HELP ", name, " ", help, "\n# TYPE ", name, " ", type, "\n");
}

void AppendHistogram(std::string& text, absl::string_view call, const LatencyHistogram& histogram) {
  const std::string name = absl::StrCat("mneme_", call, "_seconds");
  AppendHeader(text, name,
               absl::StrCat("Duration of mneme_", call == "append" || call == "commit" ? "memory_" : "", call, "."),
               "histogram");
  const LatencyHistogram::Totals totals = histogram.Read();
  uint64_t calls = 0;
  for (size_t i = 0; i < LatencyHistogram::kBounds; ++i) {
    calls += totals.buckets[i];
    absl::StrAppend(&text, name, "_bucket{le=\"", LatencyHistogram::UpperBound(i), "\"} ", calls, "\n");
  }
  calls += totals.buckets.back();
  absl::StrAppend(&text, name, "_bucket{le=\"+Inf\"} ", calls, "\n", name, "_sum ", totals.seconds, "\n", name,
                  "_count ", calls, "\n");
}

}  // namespace

mneme_store_stats StatsStruct(const StoreStats& stats) {
  mneme_store_stats result = MNEME_STORE_STATS_INIT;
  result.memories = static_cast<int64_t>(stats.database.memory_count);
  result.open_memories = stats.open_memories;
  result.disk_bytes = static_cast<int64_t>(stats.database.disk_bytes);
  result.ram_bytes = stats.ram_bytes;
  result.appended_bytes = static_cast<int64_t>(stats.database.appended_bytes);
  result.written_bytes = static_cast<int64_t>(stats.database.written_bytes);
  result.indexes_built = stats.indexes_built;
  result.indexes_loaded = stats.indexes_loaded;
  result.indexes_rebuilt = stats.indexes_rebuilt;
  result.orphans_collected = static_cast<int64_t>(stats.database.orphans_collected);
  result.code_scanned_pairs = stats.scanned.by_code;
  result.key_scanned_pairs = stats.scanned.by_key;
  result.reranked_pairs = stats.scanned.reranked;
  result.rescanned_pairs = stats.scanned.rescanned;
  result.codes_loaded = stats.codes_loaded;
  result.codes_rebuilt = stats.codes_rebuilt;
  result.rows_read = stats.rows_read;
  result.device_bytes = stats.device_bytes;
  result.device_searched_sequences = stats.device_searched_sequences;
  result.device_fallback_sequences = stats.device_fallback_sequences;
  result.device_copied_rows = stats.device_copied_rows;
  result.host_staged_calls = stats.host_staged_calls;
  return result;
}

std::string PrometheusText(const mneme_store_stats& stats, const CallLatencies* latencies) {
  std::string text;
  for (const Metric& metric : kMetrics) {
    AppendHeader(text, metric.name, metric.help, metric.type == MetricType::kGauge ? "gauge" : "counter");
    absl::StrAppend(&text, metric.name, " ", stats.*metric.value, "\n");
  }
  if (latencies == nullptr) return text;
  AppendHistogram(text, "attend", latencies->attend);
  AppendHistogram(text, "search", latencies->search);
  AppendHistogram(text, "append", latencies->append);
  AppendHistogram(text, "commit", latencies->commit);
  return text;
}

}  // namespace mneme::capi
