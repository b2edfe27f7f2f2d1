// SPDX-License-Identifier: Apache-2.0
#include "hosts/llamacpp/main/default_threads.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <limits>
#include <sstream>
#include <thread>

namespace mneme::llama {
namespace {

double Tighter(double a, double b) {
  return a <= 0.0 ? b : b <= 0.0 ? a : std::min(a, b);
}

// "200000 100000" is 2 cores; "max 100000" is no limit.
double QuotaV2(const std::string& folder) {
  std::ifstream file(folder + "/cpu.max");
  double quota = 0.0, period = 0.0;
  return file >> quota >> period && quota > 0.0 && period > 0.0 ? quota / period : 0.0;
}

// A quota of -1 is no limit.
double QuotaV1(const std::string& folder) {
  std::ifstream quota_file(folder + "/cpu.cfs_quota_us"), period_file(folder + "/cpu.cfs_period_us");
  double quota = 0.0, period = 0.0;
  return quota_file >> quota && period_file >> period && quota > 0.0 && period > 0.0 ? quota / period : 0.0;
}

// The quota of `group` and of each group above it. A container may see its own group as the mount's root.
double TightestQuota(const std::string& mount, std::string group, double (*quota_of)(const std::string&)) {
  double tightest = quota_of(mount);
  while (group.size() > 1) {
    tightest = Tighter(tightest, quota_of(mount + group));
    group.resize(group.find_last_of('/'));
  }
  return tightest;
}

// The most tasks beside this one that were running at one of some moments, machine-wide; infinity: unknown.
double RunningOthers() {
  double most = 0.0;
  for (int moment = 0; moment < 5; ++moment) {
    if (moment > 0) std::this_thread::sleep_for(std::chrono::milliseconds(10));
    std::ifstream file("/proc/loadavg");
    double mean, running;
    if (!(file >> mean >> mean >> mean >> running)) return std::numeric_limits<double>::infinity();
    most = std::max(most, running - 1.0);
  }
  return most;
}

bool Names(const std::string& controllers, const std::string& wanted) {
  std::stringstream list(controllers);
  for (std::string one; std::getline(list, one, ',');) {
    if (one == wanted) return true;
  }
  return false;
}

}  // namespace

int32_t DefaultThreads(const MachineUse& use) {
  int32_t cores = std::max(use.allowed, 1);
  if (use.quota > 0.0) cores = std::min(cores, std::max(static_cast<int32_t>(use.quota), 1));
  const double idle = static_cast<double>(use.online) - std::max(use.load, 0.0);
  return std::clamp(static_cast<int32_t>(std::lround(std::max(idle, 1.0))), 1, cores);
}

double ReadCpuQuota(const std::string& root) {
  // Lines of "hierarchy:controllers:path"; version 2 has one hierarchy, 0, without controllers.
  std::ifstream groups(root + "/proc/self/cgroup");
  double quota = 0.0;
  for (std::string line; std::getline(groups, line);) {
    const size_t first = line.find(':');
    const size_t second = first == std::string::npos ? first : line.find(':', first + 1);
    if (second == std::string::npos || line.size() <= second + 1 || line[second + 1] != '/') continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    const std::string group = line.substr(second + 1);
    if (controllers.empty()) {
      quota = Tighter(quota, TightestQuota(root + "/sys/fs/cgroup", group, QuotaV2));
    } else if (Names(controllers, "cpu")) {
      quota = Tighter(quota, TightestQuota(root + "/sys/fs/cgroup/cpu", group, QuotaV1));
    }
  }
  return quota;
}

MachineUse ReadMachineUse() {
  MachineUse use;
  use.online = static_cast<int32_t>(std::max(sysconf(_SC_NPROCESSORS_ONLN), 1L));
  use.allowed = use.online;
  // The set grows until it has room for every core that the kernel knows.
  for (int cores = 1024; cores <= 1 << 16; cores *= 2) {
    cpu_set_t* set = CPU_ALLOC(cores);
    if (set == nullptr) break;
    const bool read = sched_getaffinity(0, CPU_ALLOC_SIZE(cores), set) == 0;
    if (read) use.allowed = CPU_COUNT_S(CPU_ALLOC_SIZE(cores), set);
    CPU_FREE(set);
    if (read) break;
  }
  use.quota = ReadCpuQuota("");
  if (getloadavg(&use.load, 1) != 1) use.load = 0.0;
  use.load = std::min(use.load, RunningOthers());
  return use;
}

}  // namespace mneme::llama
