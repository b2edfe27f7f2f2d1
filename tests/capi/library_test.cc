// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <string>
#include <thread>

#include "tests/capi/testing.h"

namespace mneme {
namespace {

using ::testing::HasSubstr;
using ::testing::MatchesRegex;
using ::testing::StartsWith;

TEST(LibraryTest, TheVersionNamesWhatIsInside) {
  EXPECT_EQ(mneme_abi_version(), MNEME_ABI_VERSION);
  EXPECT_THAT(mneme_version(),
              MatchesRegex("[0-9]+\\.[0-9]+\\.[0-9]+ \\(faiss [0-9.]+, rocksdb [0-9.]+, rows [a-z0-9]+, "
                           "codes [a-z0-9]+, cuda (off|[0-9.]+ without a device|[0-9.]+ on .+)\\)"));
  EXPECT_EQ(mneme_version(), mneme_version()) << "static text";
}

TEST(LibraryTest, EveryStatusHasANameAndAClass) {
  struct Row {
    int number;
    const char* name;
    mneme_class whose;
  };
  const Row rows[] = {
      {0, "OK", MNEME_CLASS_OK},
      {1, "CANCELLED", MNEME_CLASS_TRANSIENT},
      {3, "INVALID_ARGUMENT", MNEME_CLASS_CALLER},
      {5, "NOT_FOUND", MNEME_CLASS_CALLER},
      {6, "ALREADY_EXISTS", MNEME_CLASS_CALLER},
      {7, "PERMISSION_DENIED", MNEME_CLASS_CALLER},
      {8, "RESOURCE_EXHAUSTED", MNEME_CLASS_TRANSIENT},
      {9, "FAILED_PRECONDITION", MNEME_CLASS_CALLER},
      {10, "ABORTED", MNEME_CLASS_TRANSIENT},
      {11, "OUT_OF_RANGE", MNEME_CLASS_CALLER},
      {12, "UNIMPLEMENTED", MNEME_CLASS_CALLER},
      {13, "INTERNAL", MNEME_CLASS_INTERNAL},
      {14, "UNAVAILABLE", MNEME_CLASS_TRANSIENT},
      {15, "DATA_LOSS", MNEME_CLASS_DATA},
  };
  for (const Row& row : rows) {
    EXPECT_STREQ(mneme_status_name(static_cast<mneme_status>(row.number)), row.name);
    EXPECT_EQ(mneme_status_classify(static_cast<mneme_status>(row.number)), row.whose) << row.name;
  }
}

TEST(LibraryTest, ANumberThatIsNoStatusIsABug) {
  for (const int number : {-2147483647 - 1, -1, 2, 4, 16, 17, 1000, 2147483647}) {
    // Through memory: a host may hold any bits.
    mneme_status status;
    std::memcpy(&status, &number, sizeof(status));
    EXPECT_STREQ(mneme_status_name(status), "?");
    EXPECT_EQ(mneme_status_classify(status), MNEME_CLASS_INTERNAL);
  }
}

TEST(LibraryTest, TheLastErrorIsTheThreadsOwn) {
  mneme_card* card = nullptr;
  ExpectRefused(mneme_card_create(nullptr, "f", &card), MNEME_STATUS_INVALID_ARGUMENT, "model_name");
  std::string before, after;
  std::thread other([&] {
    before = mneme_last_error();
    mneme_card_create("m", nullptr, nullptr);
    after = mneme_last_error();
  });
  other.join();
  EXPECT_EQ(before, "");
  EXPECT_THAT(after, StartsWith("card:"));
  EXPECT_THAT(mneme_last_error(), StartsWith("model_name:"));
}

TEST(LibraryTest, ASuccessKeepsTheMessageOfTheLastFailure) {
  mneme_card* card = nullptr;
  ExpectRefused(mneme_card_create(nullptr, "f", &card), MNEME_STATUS_INVALID_ARGUMENT, "model_name");
  ASSERT_OK(mneme_card_create("m", "f", &card));
  EXPECT_THAT(mneme_last_error(), HasSubstr("model_name"));
  mneme_card_release(card);
}

}  // namespace
}  // namespace mneme
