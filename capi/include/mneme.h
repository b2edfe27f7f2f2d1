/* SPDX-License-Identifier: Apache-2.0 */
/** @file mneme.h
 *
 * mneme: external key-value memory for transformers. This C ABI is its only public interface.
 *
 * A host appends the keys and values that its attention layers compute to a memory. Each of these layers then attends
 * to the top-k most relevant rows of the whole past together with the host's own local window. Memories live in a
 * store, which is a folder, and outlive the process.
 *
 * **Status.** Every call that can fail returns a mneme_status; MNEME_OK is 0. mneme_last_error() then names the
 * argument, what was expected and what came. After a caller's error the outputs are untouched.
 *
 * **Lifetimes.** The library keeps nothing that an argument points to after the call returns, except callbacks with
 * their context, which must live until the store is closed.
 *
 * **Close and release.** Each handle is given back once: a store and a memory by their `_close`, which returns a status
 * and changes nothing when it is refused; a card, a snapshot and a graph by their `_release`, which never fails, and a
 * call that still uses one keeps it to its end. Both take NULL and do nothing then. A store is closed last:
 * MNEME_STATUS_FAILED_PRECONDITION says what of it is still held.
 *
 * **Structs.** Every option, argument and output struct starts with its size and is right after `{sizeof(T)}`: zero is
 * the default of every field, and the `_INIT` macros say no more. Structs only grow at the end, so that callers and
 * libraries of different age work together. A field that this library does not know must be zero.
 *
 * **Tensors.** Those of mneme_memory_append and mneme_attend may lie in host memory or on the device of the memory's
 * store (mneme_store_options.device_budget_bytes); all others lie in host memory.
 *
 * **Streams.** A mneme_stream orders a call's work on device tensors after what is queued there. Without one (NULL)
 * the inputs must be complete, and the outputs are when the call returns. A stream that is being captured is refused
 * (MNEME_STATUS_FAILED_PRECONDITION), except by mneme_attend with a mneme_graph.
 *
 * **Names** of memories and attachments are zero-terminated strings of 1 to 255 bytes. They should be UTF-8; that is
 * not checked, and they are compared byte by byte.
 *
 * **Numbers.** Sizes and token indices are int64_t. Layers have the host's own numbers, as in the card. Logarithms are
 * natural unless a comment says otherwise.
 *
 * **Threads.** Handles may be used from any thread. Of one memory, mneme_attend, mneme_attend_backward, mneme_search,
 * mneme_memory_read, mneme_memory_get_info, mneme_memory_get_layer and snapshots may be called from any number of
 * threads, also during any other call; append, commit, truncate, evict, fork and maintain run one at a time, and a
 * second one gets MNEME_STATUS_ABORTED; no other call of a memory may run during its close or drop. Calls of different
 * memories may run at the same time. Calls of one mneme_graph run one after another.
 *
 * **Callbacks** must not call back into the same store, except for mneme_last_error.
 */
#ifndef MNEME_H_
#define MNEME_H_

#include <stddef.h>
#include <stdint.h>

#define MNEME_API __attribute__((visibility("default")))

/* The value of a struct of which only the size is set. */
#ifdef __cplusplus
template <typename Struct>
inline Struct mneme_struct_init() {
  Struct result = {};
  result.struct_size = sizeof(Struct);
  return result;
}
#define MNEME_STRUCT_INIT(type) mneme_struct_init<type>()
#else
#define MNEME_STRUCT_INIT(type) \
  { .struct_size = sizeof(type) }
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* ------------------------------------------------------------------------------------------------ library */

/** The ABI's major number. 0 until the first release: anything may still change. */
#define MNEME_ABI_VERSION 0u

/** How a call ended. Numbered like the canonical codes of Abseil and gRPC; numbers that are missing are not used. */
typedef enum mneme_status {
  MNEME_OK = 0,
  MNEME_STATUS_CANCELLED = 1,           /**< a progress callback asked for it */
  MNEME_STATUS_INVALID_ARGUMENT = 3,    /**< an argument is wrong in itself, or does not fit the others */
  MNEME_STATUS_NOT_FOUND = 5,           /**< no store, memory or attachment of this name */
  MNEME_STATUS_ALREADY_EXISTS = 6,      /**< a memory of this name is there */
  MNEME_STATUS_PERMISSION_DENIED = 7,   /**< no right to a file, or a read-only file system */
  MNEME_STATUS_RESOURCE_EXHAUSTED = 8,  /**< a budget, the disk or RAM is full; too many open files */
  MNEME_STATUS_FAILED_PRECONDITION = 9, /**< e.g. another model's card, a store that another writer has open */
  MNEME_STATUS_ABORTED = 10,            /**< busy: another call of the same memory is running */
  MNEME_STATUS_OUT_OF_RANGE = 11,       /**< tokens that are evicted or not there */
  MNEME_STATUS_UNIMPLEMENTED = 12,      /**< not in this build, or a field that this library does not know */
  MNEME_STATUS_INTERNAL = 13,           /**< a bug in mneme or below it */
  MNEME_STATUS_UNAVAILABLE = 14,        /**< input or output failed, or the device did; it may pass */
  MNEME_STATUS_DATA_LOSS = 15           /**< stored data are damaged; they are never served */
} mneme_status;

/** Whose fault a status is. */
typedef enum mneme_class {
  MNEME_CLASS_OK = 0,
  MNEME_CLASS_CALLER = 1,    /**< correct the call */
  MNEME_CLASS_TRANSIENT = 2, /**< try again, later or with more room */
  MNEME_CLASS_DATA = 3,      /**< what is stored is damaged */
  MNEME_CLASS_INTERNAL = 4   /**< a bug in mneme or below it */
} mneme_class;

/** MNEME_ABI_VERSION of the library that is loaded. */
MNEME_API uint32_t mneme_abi_version(void);

/** The library's version and what it is built with, such as "0.1.0 (faiss 1.7.3, rocksdb 7.8.3, rows avx2, codes avx2,
 * cuda off)". Built with CUDA: "cuda 13.0 on NVIDIA H200" or "cuda 13.0 without a device". Static. */
MNEME_API const char* mneme_version(void);

/** The message of this thread's last failed call; "" if none has failed. Valid until the thread's next mneme call. */
MNEME_API const char* mneme_last_error(void);

/** A status's name without prefix, such as "INVALID_ARGUMENT"; "?" for a number that is no status. Static. */
MNEME_API const char* mneme_status_name(mneme_status status);

/** Whose fault `status` is. A number that is no status is MNEME_CLASS_INTERNAL. */
MNEME_API mneme_class mneme_status_classify(mneme_status status);

/* ------------------------------------------------------------------------------------------------ tensors */

/** Element types. */
typedef enum mneme_dtype {
  MNEME_DTYPE_DEFAULT = 0, /**< of an option: the type that its comment names; of a tensor: refused */
  MNEME_DTYPE_F32 = 1,
  MNEME_DTYPE_F16 = 2,
  MNEME_DTYPE_BF16 = 3,
  MNEME_DTYPE_I8 = 4 /**< of stored rows only: int8 with one scale a row */
} mneme_dtype;

/** Where a tensor lies. DLPack's numbers. */
typedef enum mneme_device_type { MNEME_DEVICE_CPU = 1, MNEME_DEVICE_CUDA = 2 } mneme_device_type;

/** A borrowed tensor. Frozen: it never grows. The last dimension is contiguous. */
typedef struct mneme_tensor {
  void* data;             /**< aligned to its element type */
  int32_t dtype;          /**< mneme_dtype */
  int32_t device_type;    /**< mneme_device_type */
  int32_t device_ordinal; /**< 0 for the CPU */
  int32_t ndim;
  const int64_t* shape;   /**< [ndim] */
  const int64_t* strides; /**< [ndim], in elements; NULL: row-major */
} mneme_tensor;

/** A contiguous tensor in host memory. `data` and `shape` [ndim] stay the caller's. */
static inline mneme_tensor mneme_tensor_contiguous(const void* data, mneme_dtype dtype, int32_t ndim,
                                                   const int64_t* shape) {
  mneme_tensor tensor;
  tensor.data = (void*)data;
  tensor.dtype = (int32_t)dtype;
  tensor.device_type = MNEME_DEVICE_CPU;
  tensor.device_ordinal = 0;
  tensor.ndim = ndim;
  tensor.shape = shape;
  tensor.strides = NULL;
  return tensor;
}

/** A stream of the store's device. Frozen: it never grows. */
typedef struct mneme_stream {
  void* handle; /**< a cudaStream_t; NULL is CUDA's default stream */
} mneme_stream;

/* ------------------------------------------------------------------------------------------------ handles */

typedef struct mneme_card mneme_card;         /**< what a memory is made by: a model and its layers */
typedef struct mneme_store mneme_store;       /**< an open folder of memories */
typedef struct mneme_memory mneme_memory;     /**< an open memory: a named sequence of tokens */
typedef struct mneme_snapshot mneme_snapshot; /**< a memory as it was at one moment */
typedef struct mneme_graph mneme_graph;       /**< calls of mneme_attend that are captured in a CUDA graph */

/** Reports progress, on the calling thread. A result other than 0 cancels the call (MNEME_STATUS_CANCELLED); what was
 * done by then stays and is consistent.
 * @param context  as given with the callback
 * @param done     work that is done, in the unit that the function names
 * @param total    work in all; 0: not known yet */
typedef int (*mneme_progress_fn)(void* context, int64_t done, int64_t total);

/* ------------------------------------------------------------------------------------------------ model card */

/** Which elements of a row a rotary embedding turns together. */
typedef enum mneme_rotary_layout {
  MNEME_ROTARY_NONE = 0,
  MNEME_ROTARY_INTERLEAVED = 1, /**< pairs (2i, 2i + 1): GGUF files of the Llama family */
  MNEME_ROTARY_HALVES = 2       /**< pairs (i, i + pairs): Qwen, Gemma, Hugging Face */
} mneme_rotary_layout;

/** One layer that has a memory. */
typedef struct mneme_layer_desc {
  size_t struct_size;
  int32_t layer;    /**< the host's number for it, 0 or more */
  int32_t q_heads;  /**< 1 or more */
  int32_t kv_heads; /**< divides q_heads; query head h belongs to KV head h / (q_heads / kv_heads) */
  int32_t key_dim;
  int32_t value_dim;
  float scale;                             /**< score = scale * q·k; 0: 1 / sqrt(key_dim) */
  float soft_cap;                          /**< logit = soft_cap * tanh(score / soft_cap); 0: none */
  int32_t window;                          /**< the model's own sliding window in tokens; 0: global attention */
  int32_t rotary_layout;                   /**< mneme_rotary_layout */
  int32_t rotary_pairs;                    /**< the first 2 * pairs elements of a row turn */
  const float* rotary_inverse_frequencies; /**< [rotary_pairs]; pair i turns by position * inverse_frequencies[i] rad */
  float rotary_magnitude;                  /**< YaRN's attention factor; 0: 1 */
} mneme_layer_desc;
#define MNEME_LAYER_DESC_INIT MNEME_STRUCT_INIT(mneme_layer_desc)

/** Makes a card without layers. A memory refuses a host whose card differs from the one that it was made by.
 * @param model_name           the host's own words, 1 to 1023 bytes
 * @param weights_fingerprint  the host's own words, 1 to 1023 bytes, which should change with the weights
 * @param card                 out; given back by mneme_card_release */
MNEME_API mneme_status mneme_card_create(const char* model_name, const char* weights_fingerprint, mneme_card** card);

/** Adds a layer; layers come in ascending order of their number. Not while another thread uses the card. */
MNEME_API mneme_status mneme_card_add_layer(mneme_card* card, const mneme_layer_desc* layer);

/** Gives a card back. Memories that were made by it keep their own copy. */
MNEME_API void mneme_card_release(mneme_card* card);

/* ------------------------------------------------------------------------------------------------ store */

/** What a store is opened for. */
typedef enum mneme_store_mode {
  MNEME_MODE_READ_WRITE = 0, /**< one process at a time */
  MNEME_MODE_READ_ONLY = 1,  /**< the store as it is now; any number of processes, also beside a writer */
  MNEME_MODE_FOLLOW = 2      /**< read-only; each mneme_memory_open sees what the writer has committed by then */
} mneme_store_mode;

/** How grave a message of the log is. More levels may come. */
typedef enum mneme_log_level { MNEME_LOG_WARNING = 1 } mneme_log_level;

/** Takes a message of the store's log, on any thread. `message` is valid during the callback only. */
typedef void (*mneme_log_fn)(void* context, mneme_log_level level, const char* message);

/** The host's own parallel-for: runs task(task_context, i) once for each i in [0, n), on any threads, and returns when
 * all have ended. */
typedef void (*mneme_parallel_for_fn)(void* context, size_t n, void (*task)(void* task_context, size_t i),
                                      void* task_context);

/** How a store is opened. */
typedef struct mneme_store_options {
  size_t struct_size;
  int32_t mode;               /**< mneme_store_mode */
  int32_t must_exist;         /**< 1: MNEME_STATUS_NOT_FOUND where there is no store; 0: it is created (READ_WRITE) */
  int32_t threads;            /**< the engine works on this many, the calling one included; 0 or 1: it starts none */
  int32_t background;         /**< 1: one thread of the engine builds indices; 0: mneme_memory_commit does */
  int32_t ignore_index_blobs; /**< 1: stored indices are never parsed but built anew (untrusted folders) */
  int32_t measure_latency;    /**< 1: mneme_store_write_metrics tells how long calls took, at a cost of about 0.1 us a
                                   call; 0: it does not */
  int64_t ram_budget_bytes;   /**< for sealed segments in RAM: first the keys' codes, then keys, then values; rows
                                   without room are read from disk one by one, with the same results; 0: no bound */
  int64_t disk_budget_bytes;  /**< mneme_memory_commit refuses to grow the store beyond; 0: no bound */
  mneme_parallel_for_fn parallel_for; /**< used instead of `threads`; NULL: none */
  void* parallel_for_context;
  int32_t parallel_for_width; /**< how many tasks parallel_for runs at once, 1 or more where it is given */
  mneme_log_fn log;           /**< takes warnings and reports of repairs; NULL: none */
  void* log_context;
  int32_t device_ordinal;      /**< the CUDA device that the next field is of */
  int64_t device_budget_bytes; /**< of device memory: memories that are attended to are copied there and searched there
                                    as far as they have room, the rest by the CPU; the rows found are the same, except
                                    for logits that are equal within rounding. 0: no device. Without such a device the
                                    log says so, and the CPU does all */
} mneme_store_options;
#define MNEME_STORE_OPTIONS_INIT MNEME_STRUCT_INIT(mneme_store_options)

/** Opens a store, or creates it.
 * @param path     a folder; it may be relative and is resolved once
 * @param options  NULL: the defaults
 * @param store    out; given back by mneme_store_close
 * @return MNEME_STATUS_FAILED_PRECONDITION for a folder that another writer has open */
MNEME_API mneme_status mneme_store_open(const char* path, const mneme_store_options* options, mneme_store** store);

/** Closes a store. Refused (MNEME_STATUS_FAILED_PRECONDITION) while a memory, snapshot or graph of it is held, and
 * (MNEME_STATUS_ABORTED) while another call of it is running. */
MNEME_API mneme_status mneme_store_close(mneme_store* store);

/** Takes one memory of a listing. A result other than 0 ends the listing.
 * @param context  as given with the callback
 * @param name     valid during the callback only
 * @param tokens   committed tokens that are held
 * @param bytes    of their rows */
typedef int (*mneme_memory_visitor_fn)(void* context, const char* name, int64_t tokens, int64_t bytes);

/** Calls `visitor` for each memory with its committed size, in order of their names. Loads nothing. MNEME_OK also when
 * the visitor ends it. */
MNEME_API mneme_status mneme_store_list(mneme_store* store, mneme_memory_visitor_fn visitor, void* context);

/** What mneme_store_verify found. */
typedef struct mneme_store_verify_report {
  size_t struct_size;
  int64_t memories;
  int64_t damaged_memories; /**< whose manifest or rows are damaged; the store's log names them */
  int64_t damaged_values;   /**< chunks, log records and table files that fail their checksum or are missing */
  int64_t damaged_indexes;  /**< indices and codes of keys; they are rebuilt when they are needed */
  int64_t bytes_read;
} mneme_store_verify_report;
#define MNEME_STORE_VERIFY_REPORT_INIT MNEME_STRUCT_INIT(mneme_store_verify_report)

/** Checks everything that is committed against its checksums. MNEME_OK when it ran to its end, whatever it found.
 * @param store     an open store
 * @param progress  in bytes; NULL: none
 * @param context   of `progress`
 * @param report    out */
MNEME_API mneme_status mneme_store_verify(mneme_store* store, mneme_progress_fn progress, void* context,
                                          mneme_store_verify_report* report);

/** Writes the store's files anew, so that nothing of what was dropped can be read in them. mneme_store_close erases it,
 * too; a process that was killed in between leaves it behind. Takes as long as copying the tables of the store; rows
 * lie in files of their own, which are deleted and not copied. Tokens that were evicted or truncated stay in files
 * together with tokens that are kept, until their segment is merged or dropped.
 * @param store  a store that is open for writing
 * @return MNEME_STATUS_FAILED_PRECONDITION where it is open for reading only */
MNEME_API mneme_status mneme_store_compact(mneme_store* store);

/** A backup of a store. */
typedef struct mneme_backup_info {
  size_t struct_size;
  int64_t id;           /**< 1, 2, … in the order in which the backups of a folder were made */
  int64_t unix_seconds; /**< when it was made */
  int64_t bytes;        /**< of its files, those included that it shares with other backups */
  int64_t files;
  int64_t copied_bytes; /**< of mneme_store_backup: written for it; otherwise 0 */
  int32_t damaged;      /**< 1: a file of it is missing, and only `id` is known */
} mneme_backup_info;
#define MNEME_BACKUP_INFO_INIT MNEME_STRUCT_INIT(mneme_backup_info)

/** How a backup is made. */
typedef struct mneme_store_backup_args {
  size_t struct_size;
  const char* folder;         /**< of backups of this store alone, outside of it; made where missing */
  int64_t keep;               /**< the newest backups that stay, this one included; older ones are deleted; 0: all */
  mneme_progress_fn progress; /**< in bytes read, over files that are not copied, too; NULL: none */
  void* context;              /**< of `progress` */
} mneme_store_backup_args;
#define MNEME_STORE_BACKUP_ARGS_INIT MNEME_STRUCT_INIT(mneme_store_backup_args)

/** Backs up what is committed. Files that an earlier backup in the folder has are not copied again. Other calls of the
 * store go on meanwhile; the backup has every commit that ended before this call, and each later one whole or not at
 * all. It survives a loss of power once this returns. After an error, or when the process is killed, the earlier
 * backups are as they were. One or two threads work for the call and end with it.
 * @param store  one that is open for writing
 * @param args   folder and progress
 * @param info   out; NULL: not wanted
 * @return MNEME_STATUS_FAILED_PRECONDITION where the store is open for reading only or another backup is written to the
 *         folder; MNEME_STATUS_INVALID_ARGUMENT for a folder with other files; MNEME_STATUS_RESOURCE_EXHAUSTED for a
 *         full disk; MNEME_STATUS_UNAVAILABLE where a write of the store failed meanwhile */
MNEME_API mneme_status mneme_store_backup(mneme_store* store, const mneme_store_backup_args* args,
                                          mneme_backup_info* info);

/** What becomes a store again. */
typedef struct mneme_store_restore_args {
  size_t struct_size;
  const char* folder;         /**< of the backups */
  const char* path;           /**< of the new store: a missing or an empty folder */
  int64_t backup;             /**< mneme_backup_info.id; 0: the newest */
  mneme_progress_fn progress; /**< in bytes; NULL: none */
  void* context;              /**< of `progress` */
} mneme_store_restore_args;
#define MNEME_STORE_RESTORE_ARGS_INIT MNEME_STRUCT_INIT(mneme_store_restore_args)

/** Makes a backup a store again, all or nothing, and checks every file by its checksum. The files come into
 * `path`.restoring, which becomes `path` when it is whole. What a killed restore leaves there the next one to the same
 * path deletes.
 * @return MNEME_STATUS_NOT_FOUND without such a backup; MNEME_STATUS_ALREADY_EXISTS where `path` has files;
 *         MNEME_STATUS_DATA_LOSS for a damaged backup; MNEME_STATUS_FAILED_PRECONDITION for one of a newer mneme, or
 *         while another restore to `path` runs */
MNEME_API mneme_status mneme_store_restore(const mneme_store_restore_args* args);

/** Takes one backup of a listing; `info` is valid during the callback only. A result other than 0 ends the listing. */
typedef int (*mneme_backup_visitor_fn)(void* context, const mneme_backup_info* info);

/** Calls `visitor` for each backup of a folder, the oldest first. Reads none of their files.
 * @return MNEME_STATUS_NOT_FOUND where there is no folder of backups */
MNEME_API mneme_status mneme_backup_list(const char* folder, mneme_backup_visitor_fn visitor, void* context);

/** Reads all of a backup against its checksums.
 * @param folder    of the backups
 * @param backup    mneme_backup_info.id; 0: the newest
 * @param progress  in bytes; NULL: none
 * @param context   of `progress`
 * @return MNEME_STATUS_DATA_LOSS for a damaged backup; MNEME_STATUS_NOT_FOUND without such a backup */
MNEME_API mneme_status mneme_backup_verify(const char* folder, int64_t backup, mneme_progress_fn progress,
                                           void* context);

/** Sizes and counters of a store. Counters start at 0 when it is opened. A pair is one query head and one row. */
typedef struct mneme_store_stats {
  size_t struct_size;
  int64_t memories;
  int64_t open_memories;
  int64_t disk_bytes;                /**< of the folder, now */
  int64_t ram_bytes;                 /**< rows, codes and indices in RAM, now */
  int64_t appended_bytes;            /**< rows that were committed */
  int64_t written_bytes;             /**< written to disk for them: log, flushes, compaction */
  int64_t indexes_built;             /**< indexes_rebuilt included */
  int64_t indexes_loaded;            /**< from disk */
  int64_t indexes_rebuilt;           /**< since the stored one was missing or damaged */
  int64_t orphans_collected;         /**< when it was opened: segments and indices of commits that never ended */
  int64_t code_scanned_pairs;        /**< that exact search answered from the keys' codes */
  int64_t key_scanned_pairs;         /**< that it answered from the keys: the newest rows, small memories */
  int64_t reranked_pairs;            /**< of code_scanned_pairs: the code did not rule the row out, its key was read */
  int64_t rescanned_pairs;           /**< of code_scanned_pairs: scanned twice, since the estimated threshold failed */
  int64_t codes_loaded;              /**< from disk: a layer's of a segment */
  int64_t codes_rebuilt;             /**< from the keys, since they were missing or damaged */
  int64_t rows_read;                 /**< single keys and values, from disk */
  int64_t device_bytes;              /**< of the device budget, in use now */
  int64_t device_searched_sequences; /**< of mneme_attend, whose memory the device searched */
  int64_t device_fallback_sequences; /**< that the CPU searched although the store has a device */
  int64_t device_copied_rows;        /**< tokens of a layer, copied to the device */
  int64_t host_staged_calls;         /**< with device tensors that passed through host memory */
} mneme_store_stats;
#define MNEME_STORE_STATS_INIT MNEME_STRUCT_INIT(mneme_store_stats)

/** Fills `stats`. From any thread, also during other calls. */
MNEME_API mneme_status mneme_store_get_stats(mneme_store* store, mneme_store_stats* stats);

/** Takes `size` bytes of text, with a zero byte behind them, during the callback only. */
typedef void (*mneme_text_fn)(void* context, const char* text, size_t size);

/**
 * Writes a store's metrics in the text format 0.0.4 of Prometheus: mneme_store_stats as gauges and
 * counters and, where the store was opened with measure_latency, a histogram in seconds of each of mneme_attend,
 * mneme_search, mneme_memory_append and mneme_memory_commit, refused calls included. Calls on a stream count until they
 * return, not until the device is done.
 *
 * @param store    from any thread, also during other calls
 * @param write    called once, with the whole text
 * @param context  handed to `write`
 */
MNEME_API mneme_status mneme_store_write_metrics(mneme_store* store, mneme_text_fn write, void* context);

/* ------------------------------------------------------------------------------------------------ memory */

/** What a memory is created with. */
typedef struct mneme_memory_options {
  size_t struct_size;
  int32_t stored_dtype;   /**< mneme_dtype of keys and values; MNEME_DTYPE_DEFAULT: MNEME_DTYPE_F16 */
  int32_t normalise_keys; /**< 1: appended keys become x / sqrt(|x|^2 + 1e-6), as in Memorizing Transformers */
  int32_t keys_rotated;   /**< 1: the host appends rotated keys; only MNEME_POSITION_AS_STORED can be used then */
  int64_t max_tokens;     /**< beyond this the oldest are evicted as new ones come; 0: no bound */
  int64_t max_bytes;      /**< the same bound in bytes of rows; the tighter of the two holds; 0: no bound */
  int64_t pinned_tokens;  /**< the first tokens, which are never evicted (attention sinks); they count in the bound */
  int64_t segment_tokens; /**< a tail of this many is sealed, a multiple of 256, in a bounded memory at most a sixteenth
                               of its bound; 0: 4096 */
  const char* index;      /**< "auto", "scan", "centroid", "flat", "ivf", "ivfpq", "hnsw", with numbers
                               ("centroid,max_miss=0.05", "ivf,lists=256,probes=32"), "gpu-flat", "gpu-ivf", "gpu-ivfpq"
                               where the library was built for them, or "faiss:<factory string>"; NULL: "auto", which
                               is the exact scan */
} mneme_memory_options;
#define MNEME_MEMORY_OPTIONS_INIT MNEME_STRUCT_INIT(mneme_memory_options)

/** Creates a memory, which is durable (MNEME_DURABILITY_BUFFERED) when this returns.
 * @param store    an open store
 * @param name     1 to 255 bytes (Names)
 * @param card     the model's; copied
 * @param options  NULL: the defaults
 * @param memory   out; given back by mneme_memory_close
 * @return MNEME_STATUS_ALREADY_EXISTS where the store has a memory of this name */
MNEME_API mneme_status mneme_memory_create(mneme_store* store, const char* name, const mneme_card* card,
                                           const mneme_memory_options* options, mneme_memory** memory);

/** Opens a memory. A name that is open gives the same handle once more, to be closed once more.
 * @param store     an open store
 * @param name      of the memory
 * @param expected  the model's card, which must equal the memory's; NULL: no check
 * @param memory    out; given back by mneme_memory_close
 * @return MNEME_STATUS_NOT_FOUND without such a memory, MNEME_STATUS_FAILED_PRECONDITION for another model's */
MNEME_API mneme_status mneme_memory_open(mneme_store* store, const char* name, const mneme_card* expected,
                                         mneme_memory** memory);

/** Creates a memory that starts as this one's first `at_token` tokens and shares their rows, except for the newest few,
 * which are copied. Commits whole tokens of the parent (MNEME_DURABILITY_BUFFERED). Time: O(segments).
 * @param memory    the parent
 * @param at_token  0 to the parent's next_token
 * @param new_name  1 to 255 bytes (Names)
 * @param fork      out; given back by mneme_memory_close */
MNEME_API mneme_status mneme_memory_fork(mneme_memory* memory, int64_t at_token, const char* new_name,
                                         mneme_memory** fork);

/** Deletes a memory. Refused (MNEME_STATUS_FAILED_PRECONDITION) while it is open. Its disk is given back when dropped
 * rows are a part of the store worth a flush, when the disk budget is short, by mneme_memory_maintain, and when the
 * store is closed; after that its data cannot be read in the store's files any more (see mneme_store_compact). */
MNEME_API mneme_status mneme_memory_drop(mneme_store* store, const char* name);

/** Deletes all memories of `names` [count] or none, in one write. MNEME_STATUS_FAILED_PRECONDITION names one that is
 * open, MNEME_STATUS_NOT_FOUND one that is not there, MNEME_STATUS_INVALID_ARGUMENT one that is named twice. */
MNEME_API mneme_status mneme_memory_drop_many(mneme_store* store, const char* const* names, size_t count);

/** Closes a memory. Tokens that were not committed are lost. Refused (MNEME_STATUS_ABORTED) while another call of it is
 * running. */
MNEME_API mneme_status mneme_memory_close(mneme_memory* memory);

/** A memory's state. */
typedef struct mneme_memory_info {
  size_t struct_size;
  int64_t next_token;     /**< index of the next token: whole tokens appended so far, evicted ones included */
  int64_t tokens;         /**< whole tokens that are held */
  int64_t tokens_durable; /**< next_token as of the last commit */
  int64_t first_kept;     /**< tokens [pinned_tokens, first_kept) are evicted */
  int64_t pinned_tokens;
  int64_t segments;
  int64_t tail_tokens; /**< that are not sealed yet */
  int64_t indexes;     /**< sealed ranges that have an index now */
  int64_t bytes;       /**< of the rows of `tokens` */
  int64_t ram_bytes;   /**< rows, codes and indices in RAM, now */
  int32_t layers;
  int32_t stored_dtype; /**< mneme_dtype */
  int32_t keys_rotated;
  int32_t normalise_keys;
  int64_t max_tokens; /**< the bound in force, from max_tokens and max_bytes; 0: none */
  int64_t segment_tokens;
  char model_name[256]; /**< cut to fit, zero-terminated, as the next two */
  char weights_fingerprint[256];
  char index[64];
  int64_t attachment_bytes; /**< of the attachments (mneme_memory_set_attachment) */
  char name[256];           /**< the memory's, zero-terminated */
} mneme_memory_info;
#define MNEME_MEMORY_INFO_INIT MNEME_STRUCT_INIT(mneme_memory_info)

/** Fills `info`. From any thread, also during other calls. */
MNEME_API mneme_status mneme_memory_get_info(mneme_memory* memory, mneme_memory_info* info);

/** Describes one layer of the card that the memory was created with. From any thread, also during other calls.
 * @param memory  an open memory
 * @param index   0 to mneme_memory_info.layers - 1, in ascending order of the layers' numbers
 * @param layer   out; no field is left to its default, and rotary_inverse_frequencies points into the memory until it
 * is closed
 * @return MNEME_STATUS_OUT_OF_RANGE for an index that the card does not have */
MNEME_API mneme_status mneme_memory_get_layer(mneme_memory* memory, int32_t index, mneme_layer_desc* layer);

/** Keeps bytes of the host's own with a memory under a name: a sequence's state, settings. They replace what the name
 * had before. They are durable with the next commit, together with its tokens, and are checked whenever they are read.
 * mneme_store_verify reads them, and mneme_memory_drop deletes them. Forks share them.
 * @param memory  an open memory of a store that is open for writing
 * @param name    1 to 255 bytes (Names)
 * @param bytes   [size], copied, and kept in RAM until the commit; NULL with size 0: the attachment is removed, if
 * there is one
 * @param size    at most 1 GiB
 * @param tokens  the bytes describe the memory's first `tokens` tokens, at most next_token. A truncation below that
 * removes the attachment, a fork at fewer tokens does not get it. 0: they depend on no token. Eviction leaves
 * attachments alone
 * @return MNEME_STATUS_ABORTED while another call changes the memory, MNEME_STATUS_OUT_OF_RANGE for tokens beyond
 * next_token, MNEME_STATUS_RESOURCE_EXHAUSTED beyond 1,024 attachments */
MNEME_API mneme_status mneme_memory_set_attachment(mneme_memory* memory, const char* name, const void* bytes,
                                                   size_t size, int64_t tokens);

/** Reads an attachment, committed or not. From any thread.
 * @param memory    an open memory
 * @param name      1 to 255 bytes (Names)
 * @param bytes     out [capacity]; NULL: only its size and tokens are wanted
 * @param capacity  bytes that `bytes` has room for, at least the attachment's size
 * @param size      out; may be NULL
 * @param tokens    out, as it was set; may be NULL
 * @return MNEME_STATUS_NOT_FOUND if the memory has none of that name, MNEME_STATUS_DATA_LOSS if it is damaged,
 * MNEME_STATUS_INVALID_ARGUMENT if capacity is too small (size and tokens are filled in then) */
MNEME_API mneme_status mneme_memory_get_attachment(mneme_memory* memory, const char* name, void* bytes, size_t capacity,
                                                   size_t* size, int64_t* tokens);

/** Takes one attachment of a listing. A result other than 0 ends the listing.
 * @param context  as given with the callback
 * @param name     valid during the callback only
 * @param size     in bytes
 * @param tokens   as it was set */
typedef int (*mneme_attachment_visitor_fn)(void* context, const char* name, size_t size, int64_t tokens);

/** Calls `visitor` for each attachment, in order of their names. Reads none. MNEME_OK also when the visitor ends it. */
MNEME_API mneme_status mneme_memory_list_attachments(mneme_memory* memory, mneme_attachment_visitor_fn visitor,
                                                     void* context);

/** Where mneme_memory_export writes. */
typedef struct mneme_memory_export_args {
  size_t struct_size;
  const char* path;  /**< the file to write; ends in ".safetensors" */
  int32_t overwrite; /**< 1: a file that is there is replaced; 0: MNEME_STATUS_ALREADY_EXISTS */
  int64_t
      max_file_bytes; /**< tensors beyond it go into another file; one that is larger has a file of its own; 0: 5e9 */
  mneme_progress_fn progress; /**< in bytes; NULL: none */
  void* context;              /**< of `progress` */
} mneme_memory_export_args;
#define MNEME_MEMORY_EXPORT_ARGS_INIT MNEME_STRUCT_INIT(mneme_memory_export_args)

/** Writes a memory into a file in the format safetensors, which other programs read: rows as they are stored,
 * positions, token ids, attachments, and the card and the options as metadata. It holds the whole tokens and the
 * attachments that the memory has when the call begins, committed or not. The file appears under its name when it is
 * complete and durable. Beyond max_file_bytes there are several files and an index file, which appears last: for
 * "m.safetensors" "m-00001-of-00002.safetensors", ... and "m.safetensors.index.json". The RAM that it takes does not
 * grow with the memory, apart from the largest attachment. From any thread, also during other calls.
 * @param memory  an open memory
 * @param args    where to
 * @return MNEME_STATUS_ALREADY_EXISTS, MNEME_STATUS_FAILED_PRECONDITION for a name that is not UTF-8,
 * MNEME_STATUS_ABORTED while another export writes the same file, MNEME_STATUS_RESOURCE_EXHAUSTED when the disk is
 * full, MNEME_STATUS_UNAVAILABLE where an attachment was replaced meanwhile, MNEME_STATUS_CANCELLED; then there is no
 * file */
MNEME_API mneme_status mneme_memory_export(mneme_memory* memory, const mneme_memory_export_args* args);

/** What mneme_memory_import reads. */
typedef struct mneme_memory_import_args {
  size_t struct_size;
  const char* path;           /**< a file of mneme_memory_export; of several, their common name or the index file */
  const char* name;           /**< of the new memory, 1 to 255 bytes of UTF-8; NULL: the exported one's */
  const mneme_card* expected; /**< the model's card, which must equal the file's; NULL: no check */
  mneme_progress_fn progress; /**< in bytes; NULL: none */
  void* context;              /**< of `progress` */
} mneme_memory_import_args;
#define MNEME_MEMORY_IMPORT_ARGS_INIT MNEME_STRUCT_INIT(mneme_memory_import_args)

/** Creates a memory from an exported one, wholly or not at all. It is durable (MNEME_DURABILITY_SYNCED) when this
 * returns, and holds the same tokens, rows, positions, token ids and attachments; indices are built anew. The file may
 * be anybody's: its structure, its numbers and, where it has them, its checksums are checked. Other calls on the store
 * go on meanwhile.
 * @param store   a store that is open for writing
 * @param args    where from
 * @param memory  out; given back by mneme_memory_close
 * @return MNEME_STATUS_NOT_FOUND without such a file, MNEME_STATUS_INVALID_ARGUMENT for one that is no exported memory
 * or has a number that is not finite, MNEME_STATUS_DATA_LOSS where a checksum differs, MNEME_STATUS_ALREADY_EXISTS
 * where the store has a memory of this name, MNEME_STATUS_FAILED_PRECONDITION for another model's,
 * MNEME_STATUS_RESOURCE_EXHAUSTED when the disk or its budget is full, MNEME_STATUS_CANCELLED */
MNEME_API mneme_status mneme_memory_import(mneme_store* store, const mneme_memory_import_args* args,
                                           mneme_memory** memory);

/** New tokens of one layer. Layers may run ahead of each other; a token is whole when every layer has it. */
typedef struct mneme_memory_append_args {
  size_t struct_size;
  int32_t layer;
  const mneme_tensor* keys;   /**< [tokens, kv_heads, key_dim] f32, f16 or bf16; all finite */
  const mneme_tensor* values; /**< [tokens, kv_heads, value_dim] f32, f16 or bf16; all finite */
  const int64_t* positions;   /**< [tokens] rotary positions; NULL: the token indices. The first layer that brings a
                                   token decides; another layer must agree */
  const int32_t* token_ids;   /**< [tokens], kept for the host and returned by mneme_memory_read; NULL: none */
  const mneme_stream* stream; /**< of device tensors; NULL: none. The host waits until the rows have come to it */
} mneme_memory_append_args;
#define MNEME_MEMORY_APPEND_ARGS_INIT MNEME_STRUCT_INIT(mneme_memory_append_args)

/** Appends tokens of one layer, which the next call can retrieve. Writes nothing to disk.
 * @return MNEME_STATUS_INVALID_ARGUMENT for a number that is not finite or beyond the stored type's range */
MNEME_API mneme_status mneme_memory_append(mneme_memory* memory, const mneme_memory_append_args* args);

/** What committed tokens survive. */
typedef enum mneme_durability {
  MNEME_DURABILITY_BUFFERED = 0, /**< the death of the process */
  MNEME_DURABILITY_SYNCED = 1    /**< a loss of power */
} mneme_durability;

/** Makes every whole token durable, in all layers or in none; tokens that are not whole stay pending.
 * @param memory          an open memory
 * @param durability      what the tokens survive
 * @param tokens_durable  out: next_token of what is durable; NULL: not wanted */
MNEME_API mneme_status mneme_memory_commit(mneme_memory* memory, mneme_durability durability, int64_t* tokens_durable);

/** Forgets the tokens from index `tokens` on, which is then the index of the next token; 0 empties the memory. Durable
 * with the next commit. */
MNEME_API mneme_status mneme_memory_truncate(mneme_memory* memory, int64_t tokens);

/** Evicts the oldest tokens that are not pinned until at most `keep_tokens` are held, pinned ones included. Commits
 * (MNEME_DURABILITY_BUFFERED). A segment gives disk back when half of it or more is evicted. */
MNEME_API mneme_status mneme_memory_evict(mneme_memory* memory, int64_t keep_tokens);

/** Seals, merges and indexes what is due, now. Commits (MNEME_DURABILITY_BUFFERED).
 * @param memory    an open memory
 * @param progress  in rows; NULL: none
 * @param context   of `progress` */
MNEME_API mneme_status mneme_memory_maintain(mneme_memory* memory, mneme_progress_fn progress, void* context);

/** Fixes what every layer of a step sees, whatever is appended, truncated or evicted meanwhile.
 * @param memory    an open memory
 * @param snapshot  out; given back by mneme_snapshot_release */
MNEME_API mneme_status mneme_snapshot_create(mneme_memory* memory, mneme_snapshot** snapshot);

/** Gives a snapshot back. */
MNEME_API void mneme_snapshot_release(mneme_snapshot* snapshot);

/** Stored rows of tokens [begin, begin + tokens) of one layer, decoded. */
typedef struct mneme_memory_read_args {
  size_t struct_size;
  int32_t layer;
  int64_t begin;              /**< the first token's index */
  int64_t tokens;             /**< how many */
  const mneme_tensor* keys;   /**< out, [tokens, kv_heads, key_dim] f32; NULL: not wanted */
  const mneme_tensor* values; /**< out, [tokens, kv_heads, value_dim] f32; NULL: not wanted */
  int64_t* positions;         /**< out, [tokens]; NULL: not wanted */
  int32_t* token_ids;         /**< out, [tokens], -1 where none was given; NULL: not wanted */
} mneme_memory_read_args;
#define MNEME_MEMORY_READ_ARGS_INIT MNEME_STRUCT_INIT(mneme_memory_read_args)

/** Copies stored rows out.
 * @return MNEME_STATUS_OUT_OF_RANGE for tokens that are evicted or not there */
MNEME_API mneme_status mneme_memory_read(mneme_memory* memory, const mneme_memory_read_args* args);

/* ------------------------------------------------------------------------------------------------ attend, search */

/** At which distance from the query a memory's rows stand. */
typedef enum mneme_position_policy {
  MNEME_POSITION_DEFAULT = 0,        /**< MNEME_POSITION_AS_STORED, where a comment does not say otherwise */
  MNEME_POSITION_AS_STORED = 1,      /**< the memory query meets the keys as they are: rotated keys with a rotated
                                          query, or unrotated keys with an unrotated one (NoPE) */
  MNEME_POSITION_FIXED_DISTANCE = 2, /**< unrotated keys; every row is `distance` tokens before the query (InfLLM) */
  MNEME_POSITION_WINDOW_START = 3,   /**< unrotated keys; every row is at local position 0, the query at its
                                          query_local_positions (Focused Transformer) */
  MNEME_POSITION_CLAMPED = 4         /**< unrotated keys; the true distance up to `distance`, then that (ReRoPE) */
} mneme_position_policy;

/** How attention over the memory and over the local window become one output. */
typedef enum mneme_fusion {
  MNEME_FUSION_JOINT = 0,       /**< one softmax over local and retrieved rows */
  MNEME_FUSION_GATED = 1,       /**< sigmoid(gate) * memory + (1 - sigmoid(gate)) * local */
  MNEME_FUSION_MEMORY_ONLY = 2, /**< the local window is left out */
  MNEME_FUSION_LOCAL_ONLY = 3   /**< the memory is left out */
} mneme_fusion;

/** Which local rows a query sees: query i of n and local row j of m of one sequence. */
typedef enum mneme_local_mask {
  MNEME_MASK_CAUSAL = 0,         /**< j <= i + offset */
  MNEME_MASK_SLIDING_WINDOW = 1, /**< i + offset - window < j <= i + offset */
  MNEME_MASK_NONE = 2,           /**< all */
  MNEME_MASK_BITS = 3            /**< bit j of the query's row of mask_bits, least significant bit of a byte first */
} mneme_local_mask;

/** Attention of all query heads of one layer over several sequences, packed one after another: sequence b has the
 * queries [query_offsets[b], query_offsets[b + 1]) and the local rows [local_offsets[b], local_offsets[b + 1]).
 *
 * A memory's row is visible to sequence b if it is not evicted and memory_begin[b] <= its token index < memory_end[b].
 * A host that appends rows while it still holds them in its local window sets memory_end to the index of the first
 * local token; otherwise these rows count twice.
 *
 * The logit of a local row is cap(scale * q·k), that of a memory's row
 * cap(scale * q·k) + (pinned ? 0 : memory_bias - decay * max(0, log2(age / decay_beyond))), where cap is the card's
 * soft cap, age is the query's position less the row's token index, and memory_bias is of joint fusion only. Rows are
 * ranked by it. */
typedef struct mneme_attend_args {
  size_t struct_size;
  int32_t layer;
  /* queries */
  const mneme_tensor* query;        /**< [tokens, q_heads, key_dim] f32, f16 or bf16, rotated as the local keys are */
  const mneme_tensor* memory_query; /**< the same, for the memory's keys (unrotated for unrotated keys); NULL: query */
  const int64_t* query_offsets;     /**< [batch + 1]; NULL with batch 1: all */
  const int64_t* query_positions;   /**< [tokens] true positions, in token indices of the memory; NULL: query i of n of
                                         a sequence with m local rows is at memory_end + max(0, m - n) + i */
  const int64_t* query_local_positions; /**< [tokens], of MNEME_POSITION_WINDOW_START only */
  /* local window */
  const mneme_tensor* local_keys;   /**< [local_tokens, kv_heads, key_dim]; NULL with local_values: none */
  const mneme_tensor* local_values; /**< [local_tokens, kv_heads, value_dim] */
  const int64_t* local_offsets;     /**< [batch + 1]; NULL with batch 1: all */
  int32_t local_mask;               /**< mneme_local_mask */
  const int64_t* mask_offsets;      /**< [batch]; NULL: m - n, the queries are the newest local rows */
  int64_t mask_window;              /**< of MNEME_MASK_SLIDING_WINDOW: tokens, 1 or more */
  const uint8_t* mask_bits;         /**< of MNEME_MASK_BITS: [tokens][mask_bits_stride] */
  int64_t mask_bits_stride;         /**< bytes a query */
  /* memory */
  const mneme_snapshot* const* snapshots; /**< [batch] of the memories given, NULL entries: none; NULL: none */
  const int64_t* memory_begin;            /**< [batch]; NULL: 0 */
  const int64_t* memory_end;              /**< [batch]; NULL: every row that the layer has when the call starts */
  int32_t position_policy;                /**< mneme_position_policy */
  int32_t normalise_query;                /**< 1: L2-normalise the memory query, for models trained so */
  int32_t fusion;                         /**< mneme_fusion */
  /* rules of each query head, [q_heads]; NULL: the same for all */
  const int64_t* top_k;     /**< rows retrieved, 0: this head has no memory; NULL: default_top_k */
  const float* distance;    /**< tokens, of FIXED_DISTANCE and CLAMPED; NULL: default_distance */
  const float* memory_bias; /**< added to retrieved logits in joint fusion, pinned rows exempt; NULL: 0 */
  const float* decay;       /**< nats for each doubling of age beyond decay_beyond, 0 or more; NULL: 0 */
  const float* scale;       /**< above 0; NULL: the card's */
  const float* gate;        /**< before the sigmoid; NULL: 0 */
  int64_t default_top_k;    /**< where top_k is NULL; 0: 32 */
  float default_distance;   /**< where distance is NULL */
  float decay_beyond;       /**< tokens, 1 or more; 0: 1 */
  /* outputs; all but the first may be NULL: not wanted */
  const mneme_tensor* output; /**< [tokens, q_heads, value_dim] f32, f16 or bf16 */
  float* log_sum_exp;         /**< [tokens, q_heads] over the rows that took part (gated: of local ∪ retrieved) */
  int64_t* retrieved_tokens;  /**< [tokens, q_heads, retrieved_stride], best first, -1 pads */
  float* retrieved_scores;    /**< [tokens, q_heads, retrieved_stride] logits; -infinity pads */
  int64_t retrieved_stride;   /**< room for retrieved rows a head, 1 or more where they are wanted */
  float* memory_mass;         /**< [tokens, q_heads] memory's share of the attention mass, 0 to 1 */
  int32_t* statuses;          /**< [batch] of mneme_status: a sequence that fails gets zero output, the others are
                                   served and the call returns MNEME_OK. Damaged rows fail their sequence, and so
                                   does NaN or infinity in its queries; a wrong argument or want of RAM fails the
                                   whole call, and then statuses are not written. NULL: the first failure ends the
                                   call */
  const mneme_stream* stream; /**< of device tensors; NULL: none. A call whose tensors and visible rows all lie on the
                                   device is queued where the kernels support it, and the host waits only for outputs in
                                   host memory; queries are not checked then: NaN gives NaN. Any other call passes
                                   through host memory, and the host waits (mneme_store_stats.host_staged_calls) */
  mneme_graph* graph;         /**< for a stream that is being captured; NULL: none */
} mneme_attend_args;
#define MNEME_ATTEND_ARGS_INIT MNEME_STRUCT_INIT(mneme_attend_args)

/** Attends to memories and local windows. Where all memories are NULL no card is known: the scale is 1 / sqrt(key_dim)
 * unless args->scale gives another, and there is no soft cap.
 * @param memories  [batch] of one store: each sequence's own; several may be the same; NULL entries: no memory
 * @param batch     sequences, 1 or more
 * @param args      inputs, rules and outputs */
MNEME_API mneme_status mneme_attend(mneme_memory* const* memories, size_t batch, const mneme_attend_args* args);

/** The gradients of a loss with respect to the inputs of one call of mneme_attend. output_gradient and
 * log_sum_exp_gradient are the loss's gradients with respect to that call's outputs. Outputs are overwritten; NULL: not
 * wanted. */
typedef struct mneme_attend_backward_args {
  size_t struct_size;
  const mneme_attend_args* attend;     /**< the arguments of that call, as they were. Of its outputs retrieved_tokens
                                            is read where a memory takes part, with retrieved_stride room for all
                                            rows that a head retrieved; and statuses, if given: a sequence that
                                            failed has gradients of 0. stream and graph are NULL */
  const mneme_tensor* output_gradient; /**< [tokens, q_heads, value_dim] f32, f16 or bf16 */
  const float* log_sum_exp_gradient;   /**< [tokens, q_heads]; NULL: zeros */
  const mneme_tensor* query_gradient;  /**< out, [tokens, q_heads, key_dim] f32, f16 or bf16. Where
                                            attend->memory_query is NULL, the memory's part is in it */
  const mneme_tensor* memory_query_gradient; /**< out, likewise; NULL where attend->memory_query is NULL */
  const mneme_tensor* local_keys_gradient;   /**< out, [local_tokens, kv_heads, key_dim] f32, f16 or bf16 */
  const mneme_tensor* local_values_gradient; /**< out, [local_tokens, kv_heads, value_dim] f32, f16 or bf16 */
  float* memory_bias_gradient;               /**< out, [q_heads]; 0 where fusion is not joint */
  float* gate_gradient;                      /**< out, [q_heads], of the number before the sigmoid; 0 if not gated */
  float* scale_gradient;                     /**< out, [q_heads], of local and retrieved rows */
} mneme_attend_backward_args;
#define MNEME_ATTEND_BACKWARD_ARGS_INIT MNEME_STRUCT_INIT(mneme_attend_backward_args)

/** The backward pass of mneme_attend. What was retrieved is constant, and the rows of memories have no gradient.
 * Nothing is searched: rows are read by attend->retrieved_tokens. The memories must be seen as that call saw them, so a
 * host that appends in between passes the same snapshots, or memory_end. An output_gradient that is not finite makes
 * NaN. All tensors lie in host memory. Results do not depend on the number of threads.
 * @param memories  [batch], as of mneme_attend
 * @param batch     sequences, 1 or more
 * @param args      the forward call, the gradients that come in and those that go out
 * @return MNEME_STATUS_OUT_OF_RANGE for a retrieved token that is evicted or not visible, unless a snapshot holds it.
 *         MNEME_STATUS_RESOURCE_EXHAUSTED may leave some outputs written; the same call can be made again */
MNEME_API mneme_status mneme_attend_backward(mneme_memory* const* memories, size_t batch,
                                             const mneme_attend_backward_args* args);

/** Retrieval alone. Fields without a comment are those of mneme_attend_args. */
typedef struct mneme_search_args {
  size_t struct_size;
  int32_t layer;
  const mneme_tensor* query; /**< [tokens, q_heads, key_dim] f32, f16 or bf16, rotated if the stored keys are */
  const int64_t* query_offsets;
  const int64_t* query_positions;
  const int64_t* query_local_positions;
  const mneme_snapshot* const* snapshots;
  const int64_t* memory_begin;
  const int64_t* memory_end;
  int32_t position_policy;
  int32_t normalise_query;
  const float* distance;
  const float* decay;
  const float* scale;
  float default_distance;
  float decay_beyond;
  int64_t top_k;              /**< rows a query head; 0: 32 */
  int64_t* tokens;            /**< out, [tokens, q_heads, top_k], best first, -1 pads */
  float* scores;              /**< out, [tokens, q_heads, top_k] logits; -infinity pads; NULL: not wanted */
  const mneme_tensor* keys;   /**< out, [tokens, q_heads, top_k, key_dim] f32, zeros pad; NULL: not wanted */
  const mneme_tensor* values; /**< out, [tokens, q_heads, top_k, value_dim] f32, zeros pad; NULL: not wanted */
} mneme_search_args;
#define MNEME_SEARCH_ARGS_INIT MNEME_STRUCT_INIT(mneme_search_args)

/** Finds each query head's best rows.
 * @param memories  [batch] of one store, as of mneme_attend; at least one is not NULL
 * @param batch     sequences, 1 or more
 * @param args      inputs, rules and outputs */
MNEME_API mneme_status mneme_search(mneme_memory* const* memories, size_t batch, const mneme_search_args* args);

/** Makes a graph: the mneme_attend calls of a decoding step that a host captures into a CUDA graph once and replays.
 * mneme_attend with args.graph and a stream that is being captured becomes part of it; mneme_graph_update says what
 * the replays see. In a captured call all tensors lie on the device, output is the only output, and snapshots,
 * memory_begin, memory_end and query_positions are NULL; what cannot be captured is refused by name before anything is
 * queued. After MNEME_STATUS_UNAVAILABLE the capture must be discarded.
 * @param store  one with a device (MNEME_STATUS_FAILED_PRECONDITION otherwise)
 * @param graph  out; given back by mneme_graph_release */
MNEME_API mneme_status mneme_graph_create(mneme_store* store, mneme_graph** graph);

/** Gives a graph back, with what its replays read: no replay may be under way or come after it. */
MNEME_API void mneme_graph_release(mneme_graph* graph);

/** What replays see of the memories. */
typedef struct mneme_graph_update_args {
  size_t struct_size;
  const int64_t* memory_begin;    /**< [batch]; NULL: 0 */
  const int64_t* memory_end;      /**< [batch]; NULL: all rows that the layers have now */
  const int64_t* local_offsets;   /**< [batch + 1], ascending from 0 to at most the local rows that were captured; NULL:
                                       as captured */
  const int64_t* query_positions; /**< [tokens]; NULL: as of mneme_attend_args, from what is visible now */
  const mneme_stream* stream;     /**< of the replays, and the host does not wait; NULL: no replay is under way, and the
                                       host waits */
} mneme_graph_update_args;
#define MNEME_GRAPH_UPDATE_ARGS_INIT MNEME_STRUCT_INIT(mneme_graph_update_args)

/** Sets what replays see from now on: the memories as they are now, all layers as of one moment. Before the first
 * update and after a failed one they see no memory.
 * @param graph     with captured calls, or none yet
 * @param memories  [batch] with the layers and row type that were captured; they may be other memories than then; NULL
 *                  entries: no memory
 * @param batch     as captured
 * @param args      what is visible, and the stream
 * @return MNEME_STATUS_RESOURCE_EXHAUSTED where their rows have no room on the device; mneme_attend without a graph can
 *         still run the step */
MNEME_API mneme_status mneme_graph_update(mneme_graph* graph, mneme_memory* const* memories, size_t batch,
                                          const mneme_graph_update_args* args);

/** Attention over two disjoint sets of rows, a and b, that become one. */
typedef struct mneme_merge_args {
  size_t struct_size;
  const mneme_tensor* a_output; /**< [tokens, heads, value_dim] f32, f16 or bf16 */
  const float* a_log_sum_exp;   /**< [tokens, heads]; -infinity: an empty set */
  const mneme_tensor* b_output; /**< [tokens, heads, value_dim] f32, f16 or bf16 */
  const float* b_log_sum_exp;   /**< [tokens, heads] */
  const float* gate;            /**< [heads]: sigmoid(gate) * a + (1 - sigmoid(gate)) * b; NULL: by log-sum-exp */
  const mneme_tensor* output;   /**< out, [tokens, heads, value_dim]; may be a_output or b_output */
  float* log_sum_exp;           /**< out, [tokens, heads]; may be one of the inputs; NULL: not wanted */
} mneme_merge_args;
#define MNEME_MERGE_ARGS_INIT MNEME_STRUCT_INIT(mneme_merge_args)

/** Merges attention, for hosts with a kernel of their own and for shards. The log-sum-exps may be NULL with a gate and
 * without log_sum_exp. */
MNEME_API mneme_status mneme_merge(const mneme_merge_args* args);

#ifdef __cplusplus
} /* extern "C" */
#endif

#endif /* MNEME_H_ */
