// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_STORAGE_DATABASE_H_
#define MNEME_STORAGE_DATABASE_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

#include "storage/backup.h"
#include "storage/manifest.h"

namespace mneme {

// Rows of one column in one chunk value; a multiple of the scan's block of 16 keys.
inline constexpr int64_t kChunkRows = 256;

enum class Durability {
  kBuffered,  // survives the death of the process
  kSynced,    // survives the loss of power
};

enum class ColumnKind : uint8_t {
  kKeys = 0,       // of one layer and KV head
  kValues = 1,     // of one layer and KV head
  kPositions = 2,  // int64 a token; layer and head are 0
  kTokenIds = 3,   // int32 a token; layer and head are 0
  // Made of the keys, and can be made again: a disposable cache, as index blobs are. The number says what the bytes
  // mean; another layout takes another one, so that nobody reads it for this.
  kCodes = 4,      // of one layer and KV head: blocks of key codes, in place of rows (index/scan/key_codes.h)
  kCodeMeans = 5,  // and the means that they were taken from
};

constexpr bool IsDisposable(ColumnKind kind) {
  return kind >= ColumnKind::kCodes;
}

// One column of a segment: rows of equal size, in row order.
struct Column {
  int32_t layer = 0;
  int32_t head = 0;
  ColumnKind kind = ColumnKind::kKeys;
};

struct DatabaseOptions {
  // Readers may open a store that a writer has open. kReadOnly sees what was committed when it was opened; kFollow
  // what was committed at the last CatchUp. What the writer has dropped since is Unavailable or DataLoss to them.
  enum class Mode { kReadWrite, kReadOnly, kFollow };
  Mode mode = Mode::kReadWrite;
  bool create_if_missing = true;  // kReadWrite only
  // Warnings and what was repaired; may be empty. Called from any thread, RocksDB's own among them.
  std::function<void(absl::string_view)> log;
};

struct LogRecord {
  int64_t first_row = 0;
  int64_t rows = 0;
  std::string bytes;
};

struct DatabaseStats {
  uint64_t disk_bytes = 0;      // of the store's folder now
  uint64_t appended_bytes = 0;  // rows given to transactions since open, without what is disposable
  uint64_t written_bytes = 0;   // bytes RocksDB wrote to disk since open: log, flush, compaction, blobs
  uint64_t memory_count = 0;
  uint64_t orphans_collected = 0;  // segments and indices that no manifest named when the store was opened
};

// Changes that become visible and durable together. Not thread-safe; one transaction belongs to one thread,
// several may be open at the same time. It must end before its database does. Every step can fail with
// FailedPrecondition (open for reading only, or the transaction has ended), InvalidArgument, ResourceExhausted
// (disk or memory full) or Unavailable (I/O); a step that fails ends the transaction.
class Transaction {
 public:
  virtual ~Transaction() = default;

  // A finished chunk: rows [chunk * kChunkRows, …) of `column`, at most kChunkRows of them, `row_bytes` each.
  // Written at once, in bounded batches, outside the write-ahead log; no reader looks at it before a manifest
  // names its rows. Writing a chunk again replaces it (only rows no manifest names may differ).
  virtual absl::Status PutChunk(SegmentId segment, const Column& column, int64_t chunk, absl::Span<const char> rows,
                                size_t row_bytes) = 0;

  // `rows` newest rows of all heads of one layer (or of the token columns, layer = -1), in the caller's own
  // layout, for rows that do not fill a chunk yet.
  virtual absl::Status PutLog(SegmentId segment, int32_t layer, int64_t first_row, int64_t rows,
                              absl::Span<const char> bytes) = 0;

  // Log records with first_row < `before_row` of all layers are superseded by chunks.
  virtual absl::Status DeleteLogs(SegmentId segment, int64_t before_row) = 0;

  // The bytes of an attachment, written at once outside the write-ahead log, and durable before the manifest. They are
  // kept as the one index blob of their id: Database::GetAttachment reads them, DropIndexes deletes them.
  virtual absl::Status PutAttachment(IndexId id, absl::string_view bytes) = 0;

  virtual absl::Status PutManifest(const MemoryManifest& manifest) = 0;
  virtual absl::Status DeleteManifest(absl::string_view name) = 0;

  // Makes the chunks durable, then applies the rest in one atomic write. After an error nothing of it is
  // visible, and the transaction cannot be used again. The next write tries to bring a database back that an
  // I/O error has stopped.
  virtual absl::Status Commit(Durability durability) = 0;
};

// Bytes of the rows that a manifest names.
uint64_t StoredBytes(const MemoryManifest& manifest);

// One RocksDB database in one folder. Thread-safe.
class Database {
 public:
  // NotFound if there is no store and none may be created; FailedPrecondition if another process writes to it
  // or a newer mneme made it; DataLoss if RocksDB's own files are damaged. A writer collects what no manifest
  // names before it returns.
  static absl::StatusOr<std::unique_ptr<Database>> Open(const std::string& path, const DatabaseOptions& options);

  virtual ~Database() = default;

  // Unused so far in the life of the store.
  virtual SegmentId NewSegmentId() = 0;
  virtual IndexId NewIndexId() = 0;

  virtual std::unique_ptr<Transaction> Begin() = 0;

  virtual absl::StatusOr<std::vector<std::string>> ListMemories() = 0;
  virtual absl::StatusOr<MemoryManifest> ReadManifest(absl::string_view name) = 0;

  // Reads rows [row_begin, row_end) of `column` from chunks into `rows` ((row_end - row_begin) * row_bytes bytes).
  // Only the checksums of the 4 KiB sub-blocks that hold them are verified. DataLoss names segment, layer, head,
  // kind and chunk of what is damaged or missing; NotFound if a chunk of a disposable column is missing.
  virtual absl::Status ReadChunkRows(SegmentId segment, const Column& column, int64_t row_begin, int64_t row_end,
                                     size_t row_bytes, absl::Span<char> rows) = 0;

  // Copies single rows of `column`, ascending and different, one behind the other into `rows` (which.size() * row_bytes
  // bytes). Otherwise as ReadChunkRows, but of the file only these rows' sub-blocks are read: for few rows of many.
  virtual absl::Status ReadRows(SegmentId segment, const Column& column, absl::Span<const int64_t> which,
                                size_t row_bytes, absl::Span<char> rows) = 0;

  // The same rows will be read soon: has the device begin with it, so that many can be on their way at once.
  virtual void WillReadRows(SegmentId segment, const Column& column, absl::Span<const int64_t> which,
                            size_t row_bytes) = 0;

  // The log records of one layer (-1: token columns) in row order.
  virtual absl::StatusOr<std::vector<LogRecord>> ReadLogs(SegmentId segment, int32_t layer) = 0;

  // Index blobs: a disposable cache. Put replaces, is seen at once, and is durable with the next commit of any
  // transaction (so before a manifest that names it). What was dropped stays dropped: a late Put of it does nothing.
  // Get: NotFound if there is none, DataLoss if it is damaged.
  virtual absl::Status PutIndexBlob(IndexId index, int32_t layer, int32_t head, absl::string_view blob) = 0;
  virtual absl::StatusOr<std::string> GetIndexBlob(IndexId index, int32_t layer, int32_t head) = 0;
  // The bytes that Transaction::PutAttachment has written. Errors: as of GetIndexBlob; DataLoss if they are not as many
  // as `attachment` says.
  virtual absl::StatusOr<std::string> GetAttachment(const AttachmentRef& attachment) = 0;

  // Gives back the disk of segments and indices that no manifest names any more.
  virtual absl::Status DropSegments(absl::Span<const SegmentId> segments) = 0;
  // The same for segments that have log records only: one logged write. The disk comes back with Compact.
  virtual absl::Status DropLogs(absl::Span<const SegmentId> segments) = 0;
  // Gives back the disk of dropped log records and manifests: at once, or (`all` false) once they are a third of what
  // lies beside them and a MiB, so that a drop costs little more than its own bytes.
  virtual absl::Status Compact(bool all) = 0;
  // Writes every table file anew, so that no byte of what was dropped is left in a file of the store. Rows lie in blob
  // files, which are deleted with their owner and not written again.
  virtual absl::Status RewriteFiles() = 0;
  // Disk that chunks take.
  virtual uint64_t ChunkDiskBytes() = 0;
  virtual absl::Status DropIndexes(absl::Span<const IndexId> indexes) = 0;

  // Re-reads every chunk and log record of a memory against its checksums; `damaged` is called for each bad one.
  // `progress` gets bytes done and StoredBytes; a false return cancels (Cancelled).
  virtual absl::Status VerifyMemory(const MemoryManifest& manifest,
                                    const std::function<bool(uint64_t, uint64_t)>& progress,
                                    const std::function<void(const absl::Status&)>& damaged) = 0;

  // Checks every block of RocksDB's table files, also those that no row depends on. DataLoss names the first bad file.
  virtual absl::Status VerifyTables() = 0;

  // Makes a backup in `folder` of what is committed: files that an earlier backup there has are not copied. Commits go
  // on meanwhile. Then deletes all but the newest `keep` backups (0: none). One backup at a time.
  // Errors: FailedPrecondition if the store is open for reading only, or another backup goes to `folder`;
  // InvalidArgument for a folder with other files; Unavailable if a write failed meanwhile and the database has to be
  // opened again. After an error the earlier backups are as they were.
  virtual absl::StatusOr<BackupInfo> Backup(const std::string& folder, int64_t keep,
                                            const BackupProgress& progress) = 0;

  // kFollow: sees what the writer has committed since. A no-op in the other modes.
  virtual absl::Status CatchUp() = 0;

  virtual absl::StatusOr<DatabaseStats> Stats() = 0;
};

}  // namespace mneme

#endif  // MNEME_STORAGE_DATABASE_H_
