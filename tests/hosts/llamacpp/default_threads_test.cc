// SPDX-License-Identifier: Apache-2.0
#include "hosts/llamacpp/main/default_threads.h"

#include <stdlib.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "gtest/gtest.h"

namespace mneme::llama {
namespace {

TEST(DefaultThreadsTest, OneForEachIdleCore) {
  EXPECT_EQ(DefaultThreads({8, 8, 0.0, 0.0}), 8);
  EXPECT_EQ(DefaultThreads({8, 8, 0.0, 0.4}), 8);
  EXPECT_EQ(DefaultThreads({8, 8, 0.0, 5.0}), 3);
  EXPECT_EQ(DefaultThreads({2, 2, 0.0, 13.0}), 1);
  EXPECT_EQ(DefaultThreads({1, 1, 0.0, 0.0}), 1);
}

TEST(DefaultThreadsTest, NoMoreThanThisProcessMayUse) {
  EXPECT_EQ(DefaultThreads({64, 4, 0.0, 0.0}), 4);
  EXPECT_EQ(DefaultThreads({64, 4, 0.0, 40.0}), 4) << "others run elsewhere";
  EXPECT_EQ(DefaultThreads({64, 64, 2.0, 0.0}), 2);
  EXPECT_EQ(DefaultThreads({64, 64, 2.7, 0.0}), 2);
  EXPECT_EQ(DefaultThreads({64, 64, 0.5, 0.0}), 1);
  EXPECT_EQ(DefaultThreads({0, 0, 0.0, 0.0}), 1);
}

TEST(DefaultThreadsTest, ReadsThisMachine) {
  const MachineUse use = ReadMachineUse();
  EXPECT_GE(use.online, 1);
  EXPECT_GE(use.allowed, 1);
  EXPECT_LE(use.allowed, use.online);
  EXPECT_GE(use.quota, 0.0);
  EXPECT_GE(use.load, 0.0);
}

// Files as the kernel shows them, below a folder.
class CpuQuotaTest : public ::testing::Test {
 protected:
  CpuQuotaTest() { mkdtemp(root_.data()); }
  ~CpuQuotaTest() override { std::filesystem::remove_all(root_); }
  void Write(const std::string& path, const std::string& text) {
    const std::filesystem::path file = root_ + path;
    std::filesystem::create_directories(file.parent_path());
    std::ofstream(file) << text;
  }
  std::string root_ = (std::filesystem::temp_directory_path() / "mneme-quota-XXXXXX").string();
};

TEST_F(CpuQuotaTest, NoneWithoutControlGroups) {
  EXPECT_EQ(ReadCpuQuota(root_), 0.0);
  Write("/proc/self/cgroup", "nonsense\n3:\n");
  EXPECT_EQ(ReadCpuQuota(root_), 0.0);
}

TEST_F(CpuQuotaTest, TheTightestOfVersion2) {
  Write("/proc/self/cgroup", "0::/work/job\n");
  Write("/sys/fs/cgroup/work/job/cpu.max", "max 100000\n");
  EXPECT_EQ(ReadCpuQuota(root_), 0.0);
  Write("/sys/fs/cgroup/work/cpu.max", "250000 100000\n");
  EXPECT_DOUBLE_EQ(ReadCpuQuota(root_), 2.5);
  Write("/sys/fs/cgroup/work/job/cpu.max", "100000 200000\n");
  EXPECT_DOUBLE_EQ(ReadCpuQuota(root_), 0.5);
}

TEST_F(CpuQuotaTest, AContainerSeesItsGroupAsTheRoot) {
  Write("/proc/self/cgroup", "0::/\n");
  Write("/sys/fs/cgroup/cpu.max", "300000 100000\n");
  EXPECT_DOUBLE_EQ(ReadCpuQuota(root_), 3.0);
}

TEST_F(CpuQuotaTest, Version1) {
  Write("/proc/self/cgroup", "5:memory:/x\n4:cpu,cpuacct:/job\n");
  Write("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n");
  Write("/sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n");
  EXPECT_EQ(ReadCpuQuota(root_), 0.0);
  Write("/sys/fs/cgroup/cpu/job/cpu.cfs_quota_us", "400000\n");
  Write("/sys/fs/cgroup/cpu/job/cpu.cfs_period_us", "100000\n");
  EXPECT_DOUBLE_EQ(ReadCpuQuota(root_), 4.0);
}

}  // namespace
}  // namespace mneme::llama
