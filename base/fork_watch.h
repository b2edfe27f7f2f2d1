// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_BASE_FORK_WATCH_H_
#define MNEME_BASE_FORK_WATCH_H_

namespace mneme {

// A child that fork() makes of a process with a store gets its memory and open files, but none of its threads, and
// mutexes that another thread may hold. So the child must not touch a store of its parent.

// Makes IsForkedChild true in every child that is forked from now on. Called before a store is opened. Thread-safe.
void WatchForks();

// Makes exit() in a forked child skip the destructors and handlers that were registered before the first call of this:
// RocksDB's destructors would wait for ever for threads that the child does not have. exit() still flushes stdio's
// buffers and returns its status. Called after a store is opened, when RocksDB has registered its destructors.
// Thread-safe.
void SkipEarlierDestructorsInForkedChild();

// Whether this process was forked after WatchForks. Never blocks; takes a few nanoseconds.
bool IsForkedChild();

// Makes forked children close `fd` right after the fork. Otherwise a lock on the open file would outlive the parent
// while a child has it. At most 4,096 descriptors at a time; children keep the others.
void CloseInForkedChild(int fd);
// Called before the owner closes `fd`.
void ForgetInForkedChild(int fd);

}  // namespace mneme

#endif  // MNEME_BASE_FORK_WATCH_H_
