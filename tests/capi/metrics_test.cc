// SPDX-License-Identifier: Apache-2.0
// mneme_store_write_metrics: the text of a store's metrics, and how long calls took.

#include <map>
#include <set>
#include <sstream>
#include <string>

#include "tests/capi/calls.h"

namespace mneme {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

std::string TextOf(mneme_store* store) {
  std::string text;
  const auto write = [](void* context, const char* part, size_t size) {
    EXPECT_EQ(part[size], '\0');
    static_cast<std::string*>(context)->append(part, size);
  };
  EXPECT_OK(mneme_store_write_metrics(store, write, &text));
  return text;
}

// Samples by name and label. Checks that each has its HELP and TYPE before it, once.
std::map<std::string, double> SamplesOf(const std::string& text) {
  std::map<std::string, double> samples;
  std::set<std::string> helped, typed;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    std::istringstream words(line);
    std::string first, second, name;
    words >> first >> second >> name;
    if (first == "#") {
      EXPECT_TRUE((second == "HELP" ? helped : typed).insert(name).second) << line;
      continue;
    }
    const size_t end = line.rfind(' ');
    const std::string sample = line.substr(0, end);
    std::string family = sample.substr(0, sample.find('{'));
    for (const char* suffix : {"_bucket", "_sum", "_count"}) {
      const size_t at = family.rfind(suffix);
      if (at != std::string::npos && typed.count(family.substr(0, at)) == 1) family.resize(at);
    }
    EXPECT_EQ(helped.count(family) + typed.count(family), 2u) << line;
    EXPECT_TRUE(samples.emplace(sample, std::stod(line.substr(end + 1))).second) << line;
  }
  EXPECT_TRUE(text.empty() || text.back() == '\n');
  return samples;
}

using MetricsTest = CapiTest;

TEST_F(MetricsTest, AreTheStoresStatistics) {
  mneme_store_stats stats = MNEME_STORE_STATS_INIT;
  EXPECT_OK(mneme_store_get_stats(store_, &stats));
  const std::string text = TextOf(store_);
  const std::map<std::string, double> samples = SamplesOf(text);
  // A field of the struct that is missing here, or a new one, is found by the count.
  EXPECT_EQ(samples.size(), (sizeof(mneme_store_stats) - sizeof(size_t)) / sizeof(int64_t));
  EXPECT_EQ(samples.at("mneme_memories"), 1);
  EXPECT_EQ(samples.at("mneme_open_memories"), 1);
  EXPECT_EQ(samples.at("mneme_disk_bytes"), static_cast<double>(stats.disk_bytes));
  EXPECT_EQ(samples.at("mneme_appended_bytes_total"), static_cast<double>(stats.appended_bytes));
  EXPECT_GT(stats.appended_bytes, 0);
  EXPECT_THAT(text, Not(HasSubstr("histogram"))) << "not asked for";
}

class LatencyTest : public CapiTest {
 protected:
  LatencyTest() {
    mneme_store_options options = MNEME_STORE_OPTIONS_INIT;
    options.measure_latency = 1;
    EXPECT_OK(mneme_store_open((folder_.path() + "/measured").c_str(), &options, &measured_));
    EXPECT_OK(mneme_memory_create(measured_, "m", card_, nullptr, &in_measured_));
  }
  ~LatencyTest() override {
    EXPECT_OK(mneme_memory_close(in_measured_));
    EXPECT_OK(mneme_store_close(measured_));
  }

  std::map<std::string, double> Samples() { return SamplesOf(TextOf(measured_)); }

  mneme_store* measured_ = nullptr;
  mneme_memory* in_measured_ = nullptr;
};

TEST_F(LatencyTest, CallsOfEachKindAreCountedWhereTheyWereMade) {
  EXPECT_OK(AppendTokens(in_measured_, kLayer, 310));
  EXPECT_OK(mneme_memory_commit(in_measured_, MNEME_DURABILITY_BUFFERED, nullptr));
  AttendCall attend(in_measured_);
  for (int i = 0; i < 3; ++i) EXPECT_OK(attend.Run());
  SearchCall search(in_measured_);
  for (int i = 0; i < 2; ++i) EXPECT_OK(search.Run());
  AttendCall elsewhere(memory_);
  EXPECT_OK(elsewhere.Run());
  std::map<std::string, double> samples = Samples();
  EXPECT_EQ(samples.at("mneme_append_seconds_count"), 1);
  EXPECT_EQ(samples.at("mneme_commit_seconds_count"), 1);
  EXPECT_EQ(samples.at("mneme_attend_seconds_count"), 3);
  EXPECT_EQ(samples.at("mneme_search_seconds_count"), 2);
  for (const std::string call : {"append", "commit", "attend", "search"}) {
    SCOPED_TRACE(call);
    const std::string name = "mneme_" + call + "_seconds";
    const double count = samples.at(name + "_count"), sum = samples.at(name + "_sum");
    EXPECT_EQ(samples.at(name + "_bucket{le=\"+Inf\"}"), count);
    EXPECT_GT(sum, 0);
    EXPECT_LT(sum, 60);
    // The buckets are cumulative, and the calls lie in those that their sum allows.
    double before = 0;
    for (int i = 0; i < 25; ++i) {
      std::ostringstream bound;
      bound << 1e-6 * (1 << i);
      const auto bucket = samples.find(name + "_bucket{le=\"" + bound.str() + "\"}");
      ASSERT_NE(bucket, samples.end()) << bound.str();
      EXPECT_GE(bucket->second, before);
      before = bucket->second;
      if (1e-6 * (1 << i) * count < 0.99 * sum) {
        EXPECT_LT(bucket->second, count) << "not all can be that short";
      }
    }
  }
}

TEST_F(LatencyTest, ARefusedCallCounts) {
  AttendCall attend(in_measured_);
  attend.args.default_top_k = -1;
  EXPECT_NE(attend.Run(), MNEME_OK);
  EXPECT_EQ(Samples().at("mneme_attend_seconds_count"), 1);
}

TEST_F(MetricsTest, Refuses) {
  const auto write = [](void*, const char*, size_t) { ADD_FAILURE() << "called"; };
  ExpectRefused(mneme_store_write_metrics(nullptr, write, nullptr), MNEME_STATUS_INVALID_ARGUMENT, "store");
  ExpectRefused(mneme_store_write_metrics(store_, nullptr, nullptr), MNEME_STATUS_INVALID_ARGUMENT, "write");
}

}  // namespace
}  // namespace mneme
