// SPDX-License-Identifier: Apache-2.0
/* mneme: external key-value memory for transformers. The C ABI, and the only public interface.
 *
 * A host appends the keys and values that its attention layers compute to a memory, and each of these layers then
 * attends to the top-k most relevant rows of the whole past together with the host's own local window. Memories live
 * in a store (a folder) and outlive the process.
 *
 * Conventions
 *   Status       Every call that can fail returns mneme_status; MNEME_OK is 0. mneme_last_error() then says which
 *                argument was wrong, what was expected and what came. Outputs are untouched after a caller's error.
 *   Ownership    Handles are created and released by the library; releasing or closing NULL does nothing and is fine.
 *                Nothing that an argument points to is kept after the call returns, unless its comment says so.
 *   Structs      Every argument, option and output struct starts with its size: initialise it with its *_INIT macro.
 *                Structs only grow at the end, so older callers keep working with newer libraries.
 *   Tensors      DLPack's fields: data, element type, device, shape, strides in elements (NULL: row-major). The last
 *                dim is contiguous. Tensors of mneme_memory_append and mneme_attend may lie on the device of the
 * memory's store (mneme_store_options.device_budget_bytes) and any of them in host memory; all others in host memory.
 * Streams has_stream and a handle (a cudaStream_t; 0 is one, too) order the call's work with device tensors after what
 * is queued there. Without has_stream, what fills the inputs must be done, and the outputs are there when the call
 * returns. A stream that is being captured is refused (MNEME_STATUS_FAILED_PRECONDITION) but by mneme_attend with a
 * mneme_graph. Numbers      Sizes and token indices are int64_t. Layers are the host's own layer numbers, as the card
 * has them. Logarithms are natural unless a comment says otherwise. Threads      The same memory: mneme_attend,
 * _search, _memory_info and snapshots from any number of threads, also during any other call; append, commit, truncate,
 * evict, fork and maintain one at a time, a second one gets MNEME_STATUS_ABORTED ("busy"). close and drop: no other
 * call of that memory may be running. Different memories: free. Calls of one mneme_graph follow each other. Handles may
 * be used from any thread. mneme_last_error is the thread's own. Callbacks    must not call back into the same store. A
 * progress callback that returns non-zero cancels the call (MNEME_STATUS_CANCELLED); what was done so far stays
 * consistent.
 */
#ifndef MNEME_H_
#define MNEME_H_

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define MNEME_API __declspec(dllexport)
#else
#define MNEME_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* ------------------------------------------------------------------------------------------------ library */

#define MNEME_ABI_VERSION 0u /* the ABI's major number; 0 until the first release: may still change */

/* Numbered like the canonical codes of Abseil and gRPC. */
typedef enum mneme_status {
  MNEME_OK = 0,
  MNEME_STATUS_CANCELLED = 1,
  MNEME_STATUS_INVALID_ARGUMENT = 3,
  MNEME_STATUS_NOT_FOUND = 5,
  MNEME_STATUS_ALREADY_EXISTS = 6,
  MNEME_STATUS_PERMISSION_DENIED = 7,   /* no right to a file, or a read-only file system */
  MNEME_STATUS_RESOURCE_EXHAUSTED = 8,  /* a budget, the disk or memory is full; too many open files */
  MNEME_STATUS_FAILED_PRECONDITION = 9, /* e.g. another model's card, a store open by another writer */
  MNEME_STATUS_ABORTED = 10,            /* busy: another call of the same memory is running */
  MNEME_STATUS_OUT_OF_RANGE = 11,
  MNEME_STATUS_UNIMPLEMENTED = 12, /* not in this build */
  MNEME_STATUS_INTERNAL = 13,
  MNEME_STATUS_UNAVAILABLE = 14, /* input or output failed; may pass */
  MNEME_STATUS_DATA_LOSS = 15    /* damaged data; never served */
} mneme_status;

/* Whose fault a status is. */
typedef enum mneme_class {
  MNEME_CLASS_OK = 0,
  MNEME_CLASS_CALLER = 1,    /* mend the call */
  MNEME_CLASS_TRANSIENT = 2, /* try again, later or with more room */
  MNEME_CLASS_DATA = 3,      /* what is stored is damaged */
  MNEME_CLASS_INTERNAL = 4   /* a bug in mneme or below it */
} mneme_class;

MNEME_API uint32_t mneme_abi_version(void);

/* "0.1.0 (faiss 1.7.3, rocksdb 7.8.3, rows avx2, codes avx2, cuda off)"; built with CUDA, "cuda 13.0 on NVIDIA H200" or
 * "cuda 13.0 without a device". Static. */
MNEME_API const char* mneme_version(void);

/* The message of this thread's last failed call; "" if none failed yet. Valid until the thread's next mneme call. */
MNEME_API const char* mneme_last_error(void);

/* "INVALID_ARGUMENT"; "?" for a number that is no status. Static. */
MNEME_API const char* mneme_status_name(mneme_status status);
MNEME_API mneme_class mneme_status_classify(mneme_status status);

/* ------------------------------------------------------------------------------------------------ tensors */

typedef enum mneme_dtype {
  MNEME_DTYPE_F32 = 0,
  MNEME_DTYPE_F16 = 1,
  MNEME_DTYPE_BF16 = 2,
  MNEME_DTYPE_I8 = 3 /* stored rows only: int8 with one scale a row */
} mneme_dtype;

/* DLPack's device types. */
typedef enum mneme_device_type { MNEME_DEVICE_CPU = 1, MNEME_DEVICE_CUDA = 2 } mneme_device_type;

/* A borrowed tensor. Frozen for ever. */
typedef struct mneme_tensor {
  void* data;
  int32_t dtype;          /* mneme_dtype */
  int32_t device_type;    /* mneme_device_type */
  int32_t device_ordinal; /* 0 for the CPU */
  int32_t ndim;
  const int64_t* shape;   /* [ndim] */
  const int64_t* strides; /* [ndim], in elements; NULL: row-major */
} mneme_tensor;

/* ------------------------------------------------------------------------------------------------ handles */

typedef struct mneme_card mneme_card;
typedef struct mneme_store mneme_store;
typedef struct mneme_memory mneme_memory;
typedef struct mneme_snapshot mneme_snapshot;
typedef struct mneme_graph mneme_graph;

/* Called with the work done and the work there is in all, in a unit that its function names (0: not known yet).
 * Non-zero cancels. */
typedef int (*mneme_progress_fn)(void* context, int64_t done, int64_t total);

/* ------------------------------------------------------------------------------------------------ model card */

typedef enum mneme_rotary_layout {
  MNEME_ROTARY_NONE = 0,
  MNEME_ROTARY_INTERLEAVED = 1, /* pairs (2i, 2i + 1): GGUF files of the Llama family */
  MNEME_ROTARY_HALVES = 2       /* pairs (i, i + pairs): Qwen, Gemma, Hugging Face */
} mneme_rotary_layout;

/* One layer that shall have a memory. */
typedef struct mneme_layer_desc {
  size_t struct_size;
  int32_t layer; /* the host's number for it */
  int32_t q_heads;
  int32_t kv_heads; /* divides q_heads; query head h belongs to KV head h / (q_heads / kv_heads) */
  int32_t key_dim;
  int32_t value_dim;
  float scale;           /* score = scale * q·k, e.g. 1 / sqrt(key_dim), in whichever way that is rounded */
  float soft_cap;        /* logit = soft_cap * tanh(score / soft_cap); 0: none */
  int32_t window;        /* the model's own sliding window in tokens; 0: global */
  int32_t rotary_layout; /* mneme_rotary_layout */
  int32_t rotary_pairs;  /* the first 2 * pairs elements of a row turn */
  const float* rotary_inverse_frequencies; /* [rotary_pairs]; pair i turns by position * inverse_frequencies[i] */
  float rotary_magnitude;                  /* YaRN's attention factor; 1 otherwise */
} mneme_layer_desc;
#define MNEME_LAYER_DESC_INIT \
  { sizeof(mneme_layer_desc), 0, 0, 0, 0, 0, 1.0f, 0.0f, 0, MNEME_ROTARY_NONE, 0, NULL, 1.0f }

/* What memories of a model are made by: a memory refuses a host whose card differs. model_name and
 * weights_fingerprint are the host's own words, 1 to 1023 bytes; the fingerprint should change with the weights. */
MNEME_API mneme_status mneme_card_create(const char* model_name, const char* weights_fingerprint, mneme_card** card);
/* Layers in ascending order of their number. */
MNEME_API mneme_status mneme_card_add_layer(mneme_card* card, const mneme_layer_desc* layer);
MNEME_API void mneme_card_release(mneme_card* card);

/* ------------------------------------------------------------------------------------------------ store */

typedef enum mneme_store_mode {
  MNEME_MODE_READ_WRITE = 0, /* one process at a time */
  MNEME_MODE_READ_ONLY = 1,  /* the store as it is now; any number of processes, also beside a writer */
  MNEME_MODE_FOLLOW = 2      /* read-only; each mneme_memory_open sees what the writer has committed by then */
} mneme_store_mode;

typedef enum mneme_log_level { MNEME_LOG_WARNING = 1 } mneme_log_level; /* more may come */
typedef void (*mneme_log_fn)(void* context, mneme_log_level level, const char* message);

/* The host's own parallel-for: runs task(task_context, 0 … n - 1), each once, and returns when all have ended. */
typedef void (*mneme_parallel_for_fn)(void* context, size_t n, void (*task)(void* task_context, size_t i),
                                      void* task_context);

typedef struct mneme_store_options {
  size_t struct_size;
  int32_t mode;              /* mneme_store_mode */
  int32_t create_if_missing; /* 1: yes */
  int32_t threads;           /* the engine works on this many, the calling one included; 1: starts none */
  int32_t background; /* 1: the engine may start one thread that builds indices; 0: mneme_memory_commit does it */
  int32_t ignore_index_blobs; /* 1: index blobs are never parsed, indices are built anew (untrusted folders) */
  int64_t ram_budget_bytes;   /* of sealed segments kept in memory: first the keys' codes, then keys, then values; rows
                                 that have no room are read from disk one by one, with the same results; 0: all */
  int64_t disk_budget_bytes;  /* mneme_memory_commit refuses to grow the store beyond; 0: none */
  mneme_parallel_for_fn parallel_for; /* used instead of `threads` where given */
  void* parallel_for_context;
  int32_t parallel_for_width; /* how many tasks it runs at once */
  mneme_log_fn log;           /* warnings and what was repaired; may come from any thread */
  void* log_context;
  int32_t device_ordinal;      /* the CUDA device of the next field */
  int64_t device_budget_bytes; /* of device memory: memories that are attended to are copied there and searched there as
                                  far as they have room, the rest by the CPU, with the same rows found but for logits
                                  equal within rounding; 0: no device. Where there is none the log says so, and the CPU
                                  does it all */
} mneme_store_options;
#define MNEME_STORE_OPTIONS_INIT \
  { sizeof(mneme_store_options), MNEME_MODE_READ_WRITE, 1, 1, 0, 0, 0, 0, NULL, NULL, 0, NULL, NULL, 0, 0 }

/* options NULL: the defaults of MNEME_STORE_OPTIONS_INIT. A folder that another process writes to is refused
 * (MNEME_STATUS_FAILED_PRECONDITION). */
MNEME_API mneme_status mneme_store_open(const char* path, const mneme_store_options* options, mneme_store** store);
/* Refused (MNEME_STATUS_FAILED_PRECONDITION) while memories are open. */
MNEME_API mneme_status mneme_store_close(mneme_store* store);

/* name is valid during the callback only. Non-zero stops the listing (which then still returns MNEME_OK). */
typedef int (*mneme_memory_visitor_fn)(void* context, const char* name, int64_t tokens, int64_t bytes);
/* Committed sizes, by name, without loading anything. */
MNEME_API mneme_status mneme_store_list(mneme_store* store, mneme_memory_visitor_fn visitor, void* context);

typedef struct mneme_store_verify_report {
  size_t struct_size;
  int64_t memories;
  int64_t damaged_memories; /* whose manifest or rows are damaged; messages go to the store's log */
  int64_t damaged_values;   /* chunks, log records and table files that fail their checksum or are missing */
  int64_t damaged_indexes;  /* and codes of keys: will be rebuilt */
  int64_t bytes_read;
} mneme_store_verify_report;
#define MNEME_STORE_VERIFY_REPORT_INIT \
  { sizeof(mneme_store_verify_report), 0, 0, 0, 0, 0 }
/* Reads everything that is committed against its checksums. MNEME_OK when it ran to its end, whatever it found.
 * Progress in bytes. */
MNEME_API mneme_status mneme_store_verify(mneme_store* store, mneme_progress_fn progress, void* context,
                                          mneme_store_verify_report* report);

typedef struct mneme_store_stats {
  size_t struct_size;
  int64_t memories;
  int64_t open_memories;
  int64_t disk_bytes;         /* of the folder, now */
  int64_t ram_bytes;          /* rows, codes and indices in memory, now */
  int64_t appended_bytes;     /* rows committed since open */
  int64_t written_bytes;      /* bytes written to disk for them: log, flushes, compaction */
  int64_t indexes_built;      /* since open */
  int64_t indexes_loaded;     /* from blobs, since open */
  int64_t indexes_rebuilt;    /* of those built: because the blob was missing or damaged */
  int64_t orphans_collected;  /* at open: segments and indices of commits that never ended */
  int64_t code_scanned_pairs; /* (query head, row) pairs since open that exact search answered from the keys' codes */
  int64_t key_scanned_pairs;  /* and those that it took from the keys: the newest rows, small memories */
  int64_t reranked_pairs;     /* of those by code: what the code could not rule out, so that the key was read as well */
  int64_t rescanned_pairs;    /* of those by code: a second time, since the best rows were worse than their codes had it
                                 look */
  int64_t codes_loaded;       /* from disk, since open: a layer's of a segment */
  int64_t codes_rebuilt;      /* from the keys, since they were missing or damaged */
  int64_t rows_read;          /* single keys and values read from disk, since open */
  int64_t device_bytes;       /* of the device budget, in use now */
  int64_t device_searched_sequences; /* sequences of mneme_attend whose memory the device searched, since open */
  int64_t device_fallback_sequences; /* and those that the CPU searched, though the store has a device */
  int64_t device_copied_rows;        /* tokens of a layer copied to the device, since open */
  int64_t host_staged_calls;         /* calls with device tensors that passed through host memory, since open */
} mneme_store_stats;
#define MNEME_STORE_STATS_INIT \
  { sizeof(mneme_store_stats), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0 }
MNEME_API mneme_status mneme_store_get_stats(mneme_store* store, mneme_store_stats* stats);

/* ------------------------------------------------------------------------------------------------ memory */

typedef struct mneme_memory_options {
  size_t struct_size;
  int32_t stored_dtype;   /* of keys and values: MNEME_DTYPE_F32, MNEME_DTYPE_F16, MNEME_DTYPE_BF16 or MNEME_DTYPE_I8 */
  int32_t normalise_keys; /* 1: x / sqrt(|x|^2 + 1e-6) at append, as in Memorizing Transformers */
  int32_t keys_rotated;   /* 1: the host appends rotated keys; only MNEME_POSITION_AS_STORED can be used then */
  int64_t max_tokens;     /* the oldest are evicted beyond this, as they come; 0: unbounded */
  int64_t max_bytes;      /* the same bound in bytes of rows; the tighter of the two holds; 0: unbounded */
  int64_t pinned_tokens;  /* the first tokens, which are never evicted (attention sinks); part of the bound */
  int64_t segment_tokens; /* tails of this many tokens are sealed, in a bounded memory of a sixteenth of its bound
                             if that is less; 0: 4096; a multiple of 256 */
  const char* index;      /* "auto", "scan", "flat", "ivf", "ivfpq", "hnsw", with numbers ("ivf,lists=256,probes=32"),
                             "gpu-flat", "gpu-ivf", "gpu-ivfpq" where FAISS has them (docs/gpu.md), or
                             "faiss:<factory string>"; NULL: "auto", which is the exact scan */
} mneme_memory_options;
#define MNEME_MEMORY_OPTIONS_INIT \
  { sizeof(mneme_memory_options), MNEME_DTYPE_F16, 0, 0, 0, 0, 0, 0, NULL }

/* name: 1 to 255 bytes of UTF-8. The new memory is durable (buffered) when this returns. options NULL: defaults. */
MNEME_API mneme_status mneme_memory_create(mneme_store* store, const char* name, const mneme_card* card,
                                           const mneme_memory_options* options, mneme_memory** memory);
/* expected NULL: no check of the model. The same name twice: the same memory, counted, to be closed twice. */
MNEME_API mneme_status mneme_memory_open(mneme_store* store, const char* name, const mneme_card* expected,
                                         mneme_memory** memory);
/* A new memory that starts as this one's first `at_token` tokens and shares their rows, but for the newest few, which
 * are copied. Whole tokens of the parent are committed (buffered) on the way. Cost: O(segments). */
MNEME_API mneme_status mneme_memory_fork(mneme_memory* memory, int64_t at_token, const char* new_name,
                                         mneme_memory** fork);
/* Refused while open. Disk is given back soon: when dropped rows are a part of the store worth a flush, when the disk
 * budget is short, by mneme_memory_maintain, and when the store is closed. */
MNEME_API mneme_status mneme_memory_drop(mneme_store* store, const char* name);
/* All `count` memories or none, in one write. MNEME_STATUS_FAILED_PRECONDITION names one that is open,
 * MNEME_STATUS_NOT_FOUND one that there is not, MNEME_STATUS_INVALID_ARGUMENT one that is named twice. */
MNEME_API mneme_status mneme_memory_drop_many(mneme_store* store, const char* const* names, size_t count);
/* What was not committed is gone. */
MNEME_API mneme_status mneme_memory_close(mneme_memory* memory);

typedef struct mneme_memory_info {
  size_t struct_size;
  int64_t next_token;     /* index of the next token: whole tokens appended so far, evicted ones counted */
  int64_t tokens;         /* whole tokens held now */
  int64_t tokens_durable; /* next_token as of the last commit */
  int64_t first_kept;     /* tokens [pinned_tokens, first_kept) are evicted */
  int64_t pinned_tokens;
  int64_t segments;
  int64_t tail_tokens;
  int64_t indexes; /* sealed ranges that have an index now */
  int64_t bytes;   /* of the rows of `tokens` */
  int64_t ram_bytes;
  int32_t layers;
  int32_t stored_dtype;
  int32_t keys_rotated;
  int32_t normalise_keys;
  int64_t max_tokens; /* the bound in force, from max_tokens and max_bytes; 0: none */
  int64_t segment_tokens;
  char model_name[256]; /* cut to fit, zero-terminated */
  char weights_fingerprint[256];
  char index[64];
} mneme_memory_info;
#define MNEME_MEMORY_INFO_INIT                                                             \
  {                                                                                        \
    sizeof(mneme_memory_info), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, {0}, {0}, { \
      0                                                                                    \
    }                                                                                      \
  }
MNEME_API mneme_status mneme_memory_get_info(mneme_memory* memory, mneme_memory_info* info);

/* New tokens of one layer. Layers may run ahead of each other; a token is whole when every layer has it. */
typedef struct mneme_memory_append_args {
  size_t struct_size;
  int32_t layer;
  const mneme_tensor* keys;   /* [tokens, kv_heads, key_dim] f32, f16 or bf16; all finite */
  const mneme_tensor* values; /* [tokens, kv_heads, value_dim] */
  const int64_t* positions;   /* [tokens] rotary positions; NULL: the token indices. The first layer to bring a token
                                 decides; another layer must agree */
  const int32_t* token_ids;   /* [tokens], kept for the host; NULL: none */
  int32_t has_stream;
  void* stream; /* of device tensors; the host waits until the rows have come to it: they are checked, and
                   what the CPU and the disk read is its copy */
} mneme_memory_append_args;
#define MNEME_MEMORY_APPEND_ARGS_INIT \
  { sizeof(mneme_memory_append_args), 0, NULL, NULL, NULL, NULL, 0, NULL }
/* The rows can be retrieved by the next call. Nothing is written to disk. Non-finite keys or values are refused. */
MNEME_API mneme_status mneme_memory_append(mneme_memory* memory, const mneme_memory_append_args* args);

typedef enum mneme_durability {
  MNEME_DURABILITY_BUFFERED = 0, /* survives the death of the process */
  MNEME_DURABILITY_SYNCED = 1    /* survives the loss of power */
} mneme_durability;
/* Makes every whole token durable, in all layers or in none; the rest stays pending. tokens_durable may be NULL. */
MNEME_API mneme_status mneme_memory_commit(mneme_memory* memory, mneme_durability durability, int64_t* tokens_durable);

/* Forgets tokens at and after `tokens`: the next token index is `tokens`; 0: reset. Durable with the next commit. */
MNEME_API mneme_status mneme_memory_truncate(mneme_memory* memory, int64_t tokens);
/* Evicts the oldest tokens that are not pinned until at most keep_tokens are held, pinned ones included. Commits
 * (buffered); a segment gives disk back when half of it is evicted or more. */
MNEME_API mneme_status mneme_memory_evict(mneme_memory* memory, int64_t keep_tokens);
/* Seals, merges and indexes what is due, now. Commits (buffered). Progress in rows. */
MNEME_API mneme_status mneme_memory_maintain(mneme_memory* memory, mneme_progress_fn progress, void* context);

/* Fixes what every layer of a step sees, whatever is appended, truncated or evicted meanwhile. */
MNEME_API mneme_status mneme_snapshot_create(mneme_memory* memory, mneme_snapshot** snapshot);
MNEME_API void mneme_snapshot_release(mneme_snapshot* snapshot);

/* Copies stored rows out: tokens [begin, begin + n) of one layer, decoded. Evicted or unknown tokens:
 * MNEME_STATUS_OUT_OF_RANGE. */
typedef struct mneme_memory_read_args {
  size_t struct_size;
  int32_t layer;
  int64_t begin;
  const mneme_tensor* keys;   /* out, [n, kv_heads, key_dim] f32; may be NULL */
  const mneme_tensor* values; /* out, [n, kv_heads, value_dim] f32; may be NULL */
  int64_t* positions;         /* out, [n]; may be NULL */
  int32_t* token_ids;         /* out, [n], -1 where none was given; may be NULL */
  int64_t tokens;             /* n */
} mneme_memory_read_args;
#define MNEME_MEMORY_READ_ARGS_INIT \
  { sizeof(mneme_memory_read_args), 0, 0, NULL, NULL, NULL, NULL, 0 }
MNEME_API mneme_status mneme_memory_read(mneme_memory* memory, const mneme_memory_read_args* args);

/* ------------------------------------------------------------------------------------------------ attend, search */

typedef enum mneme_position_policy {
  MNEME_POSITION_AS_STORED = 0,      /* the memory query meets the keys as they are: rotated keys with a rotated query,
                                        or unrotated ones with an unrotated query (NoPE) */
  MNEME_POSITION_FIXED_DISTANCE = 1, /* unrotated keys; every row stands `distance` tokens before the query (InfLLM) */
  MNEME_POSITION_WINDOW_START = 2,   /* unrotated keys; every row stands at local position 0, the query at
                                        query_local_positions (Focused Transformer) */
  MNEME_POSITION_CLAMPED = 3         /* unrotated keys; true distance up to `distance`, then that (ReRoPE) */
} mneme_position_policy;

typedef enum mneme_fusion {
  MNEME_FUSION_JOINT = 0, /* one softmax over local and retrieved rows */
  MNEME_FUSION_GATED = 1, /* sigmoid(gate) * memory + (1 - sigmoid(gate)) * local */
  MNEME_FUSION_MEMORY_ONLY = 2,
  MNEME_FUSION_LOCAL_ONLY = 3
} mneme_fusion;

/* Query i of n and local row j of m of one sequence: */
typedef enum mneme_local_mask {
  MNEME_MASK_CAUSAL = 0,         /* j <= i + offset */
  MNEME_MASK_SLIDING_WINDOW = 1, /* i + offset - window < j <= i + offset */
  MNEME_MASK_NONE = 2,
  MNEME_MASK_BITS = 3 /* bit j of the query's row of mask_bits, least significant bit of the first byte first */
} mneme_local_mask;

/* Attention of all query heads of one layer over several sequences, packed one after another; sequence b owns queries
 * [query_offsets[b], query_offsets[b + 1]) and local rows [local_offsets[b], local_offsets[b + 1]).
 *
 * A memory row is visible to sequence b if memory_begin[b] <= its token index < memory_end[b] (and it is not evicted).
 * The default end is every row that the layer has when the call starts. A host that appends rows while it still holds
 * them in its local window must set memory_end to the first local token's index, or they count twice.
 *
 * logit of a memory row  = cap(scale * q·k) + (pinned ? 0 : memory_bias - decay * max(0, log2(age / decay_beyond)))
 *   age = the query's position - the row's token index; memory_bias in joint fusion only. Rows are ranked by it.
 * logit of a local row   = cap(scale * q·k)
 *
 * Per-head arrays have q_heads entries. */
typedef struct mneme_attend_args {
  size_t struct_size;
  int32_t layer;
  /* queries */
  const mneme_tensor* query; /* [tokens, q_heads, key_dim], as the local keys want it (rotated) */
  const mneme_tensor*
      memory_query;             /* the same, as the memory's keys want it (unrotated for unrotated keys); NULL: query */
  const int64_t* query_offsets; /* [batch + 1]; NULL with batch 1: all */
  const int64_t* query_positions; /* [tokens] true positions, in token indices of the memory; NULL: query i of n of a
                                     sequence with m local rows stands at memory_end + max(0, m - n) + i */
  const int64_t* query_local_positions; /* [tokens], MNEME_POSITION_WINDOW_START only */
  /* local window; both NULL: none */
  const mneme_tensor* local_keys;   /* [local_tokens, kv_heads, key_dim] */
  const mneme_tensor* local_values; /* [local_tokens, kv_heads, value_dim] */
  const int64_t* local_offsets;     /* [batch + 1]; NULL with batch 1: all */
  int32_t local_mask;               /* mneme_local_mask */
  const int64_t* mask_offsets;      /* [batch]; NULL: m - n, the queries are the newest local rows */
  int64_t mask_window;              /* MNEME_MASK_SLIDING_WINDOW: tokens */
  const uint8_t* mask_bits;         /* MNEME_MASK_BITS: [tokens][mask_bits_stride] */
  int64_t mask_bits_stride;         /* bytes */
  /* memory */
  const mneme_snapshot* const* snapshots; /* [batch], of the memories given, entries may be NULL; NULL: none */
  const int64_t* memory_begin;            /* [batch]; NULL: 0 */
  const int64_t* memory_end;              /* [batch]; NULL: all */
  int32_t position_policy;                /* mneme_position_policy */
  int32_t normalise_query;                /* 1: L2-normalise the memory query, for models trained so */
  int32_t fusion;                         /* mneme_fusion */
  /* per head; each may be NULL for the default below */
  const int64_t* top_k;     /* 0: this head has no memory */
  const float* distance;    /* tokens, for FIXED_DISTANCE and CLAMPED */
  const float* memory_bias; /* added to retrieved logits in joint fusion; pinned rows exempt; 0 */
  const float* decay;       /* >= 0; 0 */
  const float* scale;       /* > 0; the card's */
  const float* gate;        /* before the sigmoid; 0 */
  int64_t default_top_k;    /* where top_k is NULL */
  float default_distance;
  float decay_beyond; /* tokens, >= 1 */
  /* outputs; all but output may be NULL */
  const mneme_tensor* output; /* [tokens, q_heads, value_dim] f32, f16 or bf16 */
  float* log_sum_exp;         /* [tokens, q_heads]; of the rows that took part (gated: of local ∪ retrieved) */
  int64_t* retrieved_tokens;  /* [tokens, q_heads, retrieved_stride], best first, -1 pads */
  float* retrieved_scores;    /* the same shape: logits; -infinity pads */
  int64_t retrieved_stride;   /* at most this many of the retrieved are reported */
  float* memory_mass;         /* [tokens, q_heads] memory's share of the attention mass, 0 … 1 */
  int32_t* statuses;          /* [batch] a mneme_status each: a sequence that fails gets zero output, the others
                                 are served and the call returns MNEME_OK; NULL: the first failure ends the call */
  int32_t has_stream;
  void* stream; /* of device tensors. Where all tensors lie on the device, all visible rows do, too, and the kernels
                   know the call (docs/gpu.md), it is queued and the host waits for it only if outputs lie in host
                   memory: those above that are plain pointers. Queries are not looked at then: NaN gives NaN. Any other
                   call passes through host memory, and the host waits until the output is on the device; see
                   mneme_store_stats.host_staged_calls */
  mneme_graph* graph; /* for a stream that is being captured; NULL: none. See mneme_graph */
} mneme_attend_args;
#define MNEME_ATTEND_ARGS_INIT                                                                                         \
  {                                                                                                                    \
    sizeof(mneme_attend_args), 0, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, MNEME_MASK_CAUSAL, NULL, 0, NULL, 0, \
        NULL, NULL, NULL, MNEME_POSITION_AS_STORED, 0, MNEME_FUSION_JOINT, NULL, NULL, NULL, NULL, NULL, NULL, 32,     \
        0.0f, 1.0f, NULL, NULL, NULL, NULL, 0, NULL, NULL, 0, NULL, NULL                                               \
  }
/* memories [batch]: each sequence's own; several may be the same, entries may be NULL (no memory). Where all are NULL
 * no card is known: the scale is then 1 / sqrt(key_dim) unless args->scale says another, and there is no soft cap. */
MNEME_API mneme_status mneme_attend(mneme_memory* const* memories, size_t batch, const mneme_attend_args* args);

/* Retrieval alone: the fields are those of mneme_attend_args. */
typedef struct mneme_search_args {
  size_t struct_size;
  int32_t layer;
  const mneme_tensor* query; /* [tokens, q_heads, key_dim], as the memory's keys want it */
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
  int64_t top_k;              /* >= 1 */
  int64_t* tokens;            /* out, [tokens, q_heads, top_k], best first, -1 pads */
  float* scores;              /* out, the same shape; -infinity pads; may be NULL */
  const mneme_tensor* keys;   /* out, [tokens, q_heads, top_k, key_dim] f32, zeros where padded; may be NULL */
  const mneme_tensor* values; /* out, [tokens, q_heads, top_k, value_dim] f32; may be NULL */
} mneme_search_args;
#define MNEME_SEARCH_ARGS_INIT                                                                                       \
  {                                                                                                                  \
    sizeof(mneme_search_args), 0, NULL, NULL, NULL, NULL, NULL, NULL, NULL, MNEME_POSITION_AS_STORED, 0, NULL, NULL, \
        NULL, 0.0f, 1.0f, 32, NULL, NULL, NULL, NULL                                                                 \
  }
MNEME_API mneme_status mneme_search(mneme_memory* const* memories, size_t batch, const mneme_search_args* args);

/* The mneme_attend calls of a step of decoding that a host captures into a CUDA graph once and replays:
 *
 *   mneme_graph_create(store, &graph);
 *   begin the capture of `stream`
 *     of each layer, with all else that it does: mneme_attend with args.graph and args.stream
 *   end it
 *   of each step:
 *     mneme_memory_append what earlier steps computed
 *     mneme_graph_update(graph, memories, batch, &args) with args.stream
 *     replay on `stream`
 *
 * Captured   Two kernels a call, nothing else. All tensors lie on the device and stay where they are; there is no
 * output but args.output, and docs/gpu.md says what else the kernels take. What they do not, snapshots, and what is
 *            mneme_graph_update's to say (memory_begin, memory_end, query_positions) is refused by name before anything
 *            is queued; after MNEME_STATUS_UNAVAILABLE the capture is to be thrown away. All calls of a graph have the
 *            same batch and query_offsets; layers whose memory_end or local_offsets differ take a graph each. Local
 *            windows should be as long as they will get, since the work is cut for them.
 * Replays    see what the last update let them see, whatever becomes of the memories meanwhile: appended to, truncated,
 *            evicted, closed or dropped. Rows that they may read stay in device memory, within the budget, until the
 *            next update. Before the first update, and after one that failed, they see no memory: right for local rows
 *            alone, and safe. They run one after the other, on the stream of the update before or behind it. Whatever
 *            happens to a memory, nothing has to be captured anew: addresses and lengths are read on the device. Only
 *            another shape, type, top_k or rule of a head takes another graph.
 * Release    frees what replays read: none may be under way or come; of an update one may be. A store is not closed
 * before. */
MNEME_API mneme_status mneme_graph_create(mneme_store* store, mneme_graph** graph);
MNEME_API void mneme_graph_release(mneme_graph* graph);

typedef struct mneme_graph_update_args {
  size_t struct_size;
  const int64_t* memory_begin;  /* [batch]; NULL: 0 */
  const int64_t* memory_end;    /* [batch]; NULL: all rows that the layers have now */
  const int64_t* local_offsets; /* [batch + 1], ascending from 0 to at most the local rows that were captured; NULL: as
                                   they were then */
  const int64_t* query_positions; /* [tokens]; NULL: as of mneme_attend_args, counted from what is visible now */
  int32_t has_stream;
  void* stream; /* of the replays; the host does not wait. Without has_stream replays must be done, and it waits */
} mneme_graph_update_args;
#define MNEME_GRAPH_UPDATE_ARGS_INIT \
  { sizeof(mneme_graph_update_args), NULL, NULL, NULL, NULL, 0, NULL }
/* What replays see from now on: the memories as they are now, all layers as of one moment. memories [batch]: with the
 * layers and the type of rows that were captured; others than then are fine, and entries may be NULL (no memory).
 * MNEME_STATUS_RESOURCE_EXHAUSTED: their rows have no room on the device; the step is one for mneme_attend without a
 * graph. */
MNEME_API mneme_status mneme_graph_update(mneme_graph* graph, mneme_memory* const* memories, size_t batch,
                                          const mneme_graph_update_args* args);

/* Merges attention over two disjoint sets of rows: for hosts with a kernel of their own, and for shards. */
typedef struct mneme_merge_args {
  size_t struct_size;
  const mneme_tensor* a_output; /* [tokens, heads, value_dim] f32, f16 or bf16 */
  const float* a_log_sum_exp;   /* [tokens, heads] */
  const mneme_tensor* b_output;
  const float* b_log_sum_exp;
  const float* gate;          /* [heads]: sigmoid(gate) * a + (1 - sigmoid(gate)) * b instead; NULL: by log-sum-exp */
  const mneme_tensor* output; /* out; may be a_output or b_output */
  float* log_sum_exp;         /* out, may be NULL, or one of the inputs */
} mneme_merge_args;
#define MNEME_MERGE_ARGS_INIT \
  { sizeof(mneme_merge_args), NULL, NULL, NULL, NULL, NULL, NULL, NULL }
MNEME_API mneme_status mneme_merge(const mneme_merge_args* args);

#ifdef __cplusplus
} /* extern "C" */
#endif

#endif /* MNEME_H_ */
