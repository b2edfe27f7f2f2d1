// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_BASE_FORK_WATCH_H_
#define MNEME_BASE_FORK_WATCH_H_

namespace mneme {

// What fork() leaves in a child of a process that uses a store: memory and open files, but none of the threads that
// write, and mutexes that some other thread may have held. So the child must not touch a store of its parent.

// From now on a child of this process is one for which IsForkedChild holds. Called before a store is opened;
// thread-safe.
void WatchForks();

// In a child for which IsForkedChild holds, exit() skips the destructors and handlers that were registered before the
// first call of this: RocksDB's destructors would wait for ever for threads that the child does not have. exit() still
// writes out stdio's buffers and leaves with the status that it was given. Called after a store is opened, when RocksDB
// has registered its destructors; thread-safe.
void SkipEarlierDestructorsInForkedChild();

// Whether this process was forked after WatchForks. Never blocks, takes a few nanoseconds.
bool IsForkedChild();

// A file descriptor that a forked child must not keep: while the child has it, a lock on the open file outlives its
// parent. The child closes it right after the fork. At most 4,096 at a time; more are kept by children.
void CloseInForkedChild(int fd);
// Before the owner closes it.
void ForgetInForkedChild(int fd);

}  // namespace mneme

#endif  // MNEME_BASE_FORK_WATCH_H_
