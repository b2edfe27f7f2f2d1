// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_HOSTS_LLAMACPP_MAIN_DEFAULT_THREADS_H_
#define MNEME_HOSTS_LLAMACPP_MAIN_DEFAULT_THREADS_H_

#include <cstdint>
#include <string>

namespace mneme::llama {

// What the machine offers to this process.
struct MachineUse {
  int32_t online = 1;   // cores of the machine
  int32_t allowed = 1;  // cores in the process's affinity mask
  double quota = 0.0;   // cores' worth of time that its control groups grant; 0: no limit
  // Running tasks of others, machine-wide: the mean of the last minute, or those of this moment where they are fewer.
  // What this program itself did a moment ago is in the mean.
  double load = 0.0;
};

// How many threads to compute with: one for each core that this process may use and others leave idle, at least 1.
// llama.cpp's threads wait for each other in a loop, so one thread more than there are idle cores slows all of them
// down.
int32_t DefaultThreads(const MachineUse& use);

// Reads the affinity mask, the quota and the load.
MachineUse ReadMachineUse();

// The tightest CPU quota among the process's control groups and their parents, in cores; 0: none. Version 2 (cpu.max)
// and version 1 (cpu.cfs_quota_us). root: where proc and sys are mounted, "" for the machine's own.
double ReadCpuQuota(const std::string& root);

}  // namespace mneme::llama

#endif  // MNEME_HOSTS_LLAMACPP_MAIN_DEFAULT_THREADS_H_
