// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_CAPI_SRC_METRICS_H_
#define MNEME_CAPI_SRC_METRICS_H_

#include <string>

#include "base/latency_histogram.h"
#include "memory/store.h"
#include "mneme.h"

namespace mneme::capi {

// How long the calls of one store took. Thread-safe.
struct CallLatencies {
  LatencyHistogram attend, search, append, commit;
};

mneme_store_stats StatsStruct(const StoreStats& stats);

// Returns: the metrics in Prometheus' text exposition format 0.0.4. `latencies` null: without them.
std::string PrometheusText(const mneme_store_stats& stats, const CallLatencies* latencies);

}  // namespace mneme::capi

#endif  // MNEME_CAPI_SRC_METRICS_H_
