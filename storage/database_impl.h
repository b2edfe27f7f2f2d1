// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_STORAGE_DATABASE_IMPL_H_
#define MNEME_STORAGE_DATABASE_IMPL_H_

#include <atomic>
#include <memory>
#include <mutex>
#include <optional>
#include <shared_mutex>
#include <string>
#include <unordered_set>
#include <utility>
#include <vector>

#include "rocksdb/db.h"
#include "rocksdb/statistics.h"

#include "storage/chunk_places.h"
#include "storage/column_writer.h"
#include "storage/database.h"
#include "storage/read_meter.h"
#include "storage/rocks.h"
#include "storage/store_folder.h"

namespace mneme {

class DatabaseImpl final : public Database {
 public:
  // database_open.cc. What Database::Open does.
  static absl::StatusOr<std::unique_ptr<Database>> Open(const std::string& path, const DatabaseOptions& options);

  ~DatabaseImpl() override = default;

  SegmentId NewSegmentId() override { return next_segment_.fetch_add(1); }
  IndexId NewIndexId() override { return next_index_.fetch_add(1); }
  std::unique_ptr<Transaction> Begin() override;
  absl::StatusOr<std::vector<std::string>> ListMemories() override;
  absl::StatusOr<MemoryManifest> ReadManifest(absl::string_view name) override;
  absl::Status ReadChunkRows(SegmentId segment, const Column& column, int64_t row_begin, int64_t row_end,
                             size_t row_bytes, absl::Span<char> rows) override;
  absl::Status ReadRows(SegmentId segment, const Column& column, absl::Span<const int64_t> which, size_t row_bytes,
                        absl::Span<char> rows) override;
  void WillReadRows(SegmentId segment, const Column& column, absl::Span<const int64_t> which,
                    size_t row_bytes) override;
  absl::StatusOr<std::vector<LogRecord>> ReadLogs(SegmentId segment, int32_t layer) override;
  absl::Status PutIndexBlob(IndexId index, int32_t layer, int32_t head, absl::string_view blob) override;
  absl::StatusOr<std::string> GetIndexBlob(IndexId index, int32_t layer, int32_t head) override;
  absl::StatusOr<std::string> GetAttachment(const AttachmentRef& attachment) override;
  absl::Status DropSegments(absl::Span<const SegmentId> segments) override;
  absl::Status DropLogs(absl::Span<const SegmentId> segments) override;
  absl::Status Compact(bool all) override;
  absl::Status RewriteFiles() override;
  uint64_t ChunkDiskBytes() override;
  absl::Status DropIndexes(absl::Span<const IndexId> indexes) override;
  absl::Status VerifyMemory(const MemoryManifest& manifest, const std::function<bool(uint64_t, uint64_t)>& progress,
                            const std::function<void(const absl::Status&)>& damaged) override;
  absl::Status VerifyTables() override;
  absl::StatusOr<BackupInfo> Backup(const std::string& folder, int64_t keep, const BackupProgress& progress) override;
  absl::Status CatchUp() override;
  absl::StatusOr<DatabaseStats> Stats() override;

 private:
  friend class TransactionImpl;

  DatabaseImpl(std::string path, std::shared_ptr<const StoreFolder> folder, const DatabaseOptions& options);

  // database_open.cc
  absl::Status OpenWriter(bool create_if_missing);
  // A view of what the writer has committed by now. `signature` becomes that of the files it was made from.
  absl::StatusOr<std::shared_ptr<RocksHandle>> OpenView(std::string& signature);
  absl::Status CheckVersion(bool create_if_missing);
  absl::Status LoadIds();
  absl::Status CollectOrphans();
  // Ids that own something in rows, log or index, ascending. Seeks from id to id.
  absl::StatusOr<std::vector<uint64_t>> Owners(Family family);

  // Holds the writer's handle for one step; all that uses db() and family() for writing does so under this lock.
  // FailedPrecondition unless this is a writer. A database that an error has stopped is opened again: RocksDB could be
  // told to resume, but then may report flushes that it has not made, or wait for ever for files of a flush that it has
  // deleted because another one failed beside it (facebook/rocksdb#11865, mended in 8.7).
  absl::Status LockWriter(std::shared_lock<std::shared_mutex>& lock);
  // The same for a step that writes into RocksDB, and not only into a batch in memory.
  absl::Status LockForWrite(std::shared_lock<std::shared_mutex>& lock);
  // FailedPrecondition if the folder is gone, ResourceExhausted if there is no memory for a write. Takes some system
  // calls, so once a write and not once a record.
  absl::Status CheckCanWrite() const;
  // Maps the outcome of a write, and remembers a failure for LockWriter. Aborted: the same again may succeed.
  absl::Status Wrote(const rocksdb::Status& status, absl::string_view doing);
  // FailedPrecondition if an allocation has failed inside RocksDB (GuardedDb): for good, as neither its writers can go
  // on nor can it be closed for another one. Reads go on in a view of their own.
  absl::Status CheckNotBroken();
  // Ends a backup that is running, so that the database can be opened again.
  void StopBackup();
  // The next three are called with handle_mutex_ held alone.
  absl::Status Recover();
  absl::Status Reopen();
  void CloseHandles();
  // Maps the outcome of a read from a view: a missing file is lost data, unless another process has changed the store
  // since that view was made.
  enum class Seen { kView, kRowsView };
  absl::Status MapRead(const rocksdb::Status& status, absl::string_view doing, Seen from = Seen::kView);

  // Keeps the persisted bound on ids above all that were handed out; precedes every commit.
  absl::Status ReserveIds();
  // Flushes what keeps old write-ahead logs alive, once in a while.
  absl::Status TrimLogs();

  // Requires: LockWriter's lock, as of the next.
  absl::Status DropLogRange(uint64_t first, uint64_t last);
  absl::Status DeleteLogRecords(absl::Span<const SegmentId> segments);
  // Of the files that the database lives on, those that are missing or have another size than they should, as
  // "000013.blob, 000018.sst". RocksDB does not always say which file it found damaged.
  absl::StatusOr<std::string> WrongFiles();
  // Where a chunk lies, by the tree; a small one lies in the tree itself, so nowhere: then `value` has it. DataLoss if
  // it is missing, or NotFound if it is disposable.
  absl::Status LookUpChunk(SegmentId segment, const Column& column, int64_t chunk, const std::string& key,
                           FoundValue& place, rocksdb::PinnableSlice& value);
  // The same, by what was known before where it was (*known).
  absl::Status FindChunk(SegmentId segment, const Column& column, int64_t chunk, std::string& key,
                         ChunkPlaces::Place& place, rocksdb::PinnableSlice& value, bool* known);
  // Runs read(bool* known), once more if it fails by what was known before.
  template <typename Read>
  absl::Status WithPlaces(SegmentId segment, const Column& column, int64_t chunk, const Read& read);
  // Reads all of a chunk of `rows` rows into `value` and checks it.
  absl::Status VerifyOne(SegmentId segment, const Column& column, int64_t chunk, size_t row_bytes, int64_t rows,
                         std::string& value);
  // Rows [begin, end) of one chunk, and single ones, numbered within it. *known: as above, also after an error.
  absl::Status ReadRangeOf(SegmentId segment, const Column& column, int64_t chunk, int64_t begin, int64_t end,
                           size_t row_bytes, absl::Span<char> rows, bool* known);
  absl::Status ReadRowsOf(SegmentId segment, const Column& column, int64_t chunk, absl::Span<const int64_t> which,
                          size_t row_bytes, absl::Span<char> rows, bool* known);
  absl::StatusOr<std::string> ReadIndexPieces(IndexId index, int32_t layer, int32_t head);
  void Log(absl::string_view message) const;

  // Manifests and logs are read from one view, which CatchUp replaces. Rows and index blobs never change while they
  // are named, so they may be read from a newer one, when the writer has moved them to other files meanwhile.
  // While a reader holds one, a writer is not opened again; so a thread holds one at a time, and no writer's lock.
  class View {
   public:
    View(std::shared_lock<std::shared_mutex> lock, std::shared_ptr<RocksHandle> handle)
        : lock_(std::move(lock)), handle_(std::move(handle)) {}
    rocksdb::DB* operator->() const { return handle_->get(); }
    rocksdb::DB* get() const { return handle_->get(); }
    rocksdb::ColumnFamilyHandle* family(Family f) const { return handle_->family(f); }

   private:
    std::shared_lock<std::shared_mutex> lock_;  // released after the handle
    std::shared_ptr<RocksHandle> handle_;
  };
  // Unavailable if a writer could not be opened again.
  absl::StatusOr<View> ViewOf(Seen which);
  // Whether another process has changed the store's files since a view was made.
  bool WriterWentOn(Seen from);
  // Puts a new view in the place of a broken one.
  absl::Status ReplaceBrokenView(Seen which);
  // True if there was a newer view for rows.
  absl::StatusOr<bool> RefreshRowsView();

  // Of the writer.
  rocksdb::DB* db() const { return writer_handle_->get(); }
  rocksdb::ColumnFamilyHandle* family(Family f) const { return writer_handle_->family(f); }
  bool writer() const { return options_.mode == DatabaseOptions::Mode::kReadWrite; }

  const std::string path_;  // as the host gave it, for messages alone
  const std::shared_ptr<const StoreFolder> folder_;
  const DatabaseOptions options_;
  std::shared_ptr<rocksdb::Statistics> statistics_;
  const std::shared_ptr<rocksdb::Cache> block_cache_;
  ChunkPlaces places_;
  // Of a writer: taken alone to open it again, shared by whoever uses its handles. Not recursive.
  std::shared_mutex handle_mutex_;
  std::shared_ptr<rocksdb::Env> writer_env_;    // kReadWrite only: holds the lock on the store
  std::shared_ptr<RocksHandle> writer_handle_;  // kReadWrite only; null if it could not be opened again
  uint64_t epoch_ = 0;                          // how often it was: what was written without a log is lost then
  // Shared by each write of a commit, taken alone for the moment in which a backup's files are chosen. After
  // handle_mutex_.
  std::shared_mutex commit_mutex_;
  std::mutex backup_mutex_;        // one backup at a time
  std::mutex backup_meter_mutex_;  // guards the next
  std::shared_ptr<ReadMeter> backup_meter_;
  std::mutex view_mutex_;  // guards the next two
  std::shared_ptr<RocksHandle> view_;
  std::shared_ptr<RocksHandle> rows_view_;
  std::mutex refresh_mutex_;  // one new view at a time; guards the next two, and is taken before view_mutex_
  std::string view_signature_;
  std::string rows_signature_;
  std::optional<ColumnWriter> rows_writer_;
  std::optional<ColumnWriter> index_writer_;

  std::atomic<uint64_t> next_segment_{1};
  std::atomic<uint64_t> next_index_{1};
  std::mutex ids_mutex_;
  std::atomic<uint64_t> segment_bound_{0};  // ids below it need no new reservation
  std::atomic<uint64_t> index_bound_{0};

  std::atomic<bool> write_failed_{false};
  std::atomic<int> flushes_since_trim_{0};
  std::atomic<uint64_t> appended_bytes_{0};
  std::mutex compact_mutex_;                        // one Compact at a time
  std::atomic<uint64_t> dropped_bytes_{0};          // of log records and manifests, since the last Compact
  std::atomic<uint64_t> logged_before_compact_{0};  // bytes that the write-ahead log had got by then
  uint64_t orphans_collected_ = 0;
  std::mutex index_mutex_;  // one PutIndexBlob at a time: generations are read, then written; guards the next
  std::unordered_set<IndexId> dropped_indexes_;  // since open
};

}  // namespace mneme

#endif  // MNEME_STORAGE_DATABASE_IMPL_H_
