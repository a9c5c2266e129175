// Attention on the CPU, one tile of keys at a time (FlashAttention's online softmax, arXiv:2205.14135), with head
// gates, head plans and statistics inside the loop. AVX2 and FMA; OpenMP over (batch row, head, block of queries).
//
// The unit of work is an Item: up to kRows query rows that share a key/value head. Its keys are taken in ascending
// order in Tiles of up to kTile. Rows go through a tile in groups of kGroup, small enough for a group's scores and
// output to stay in registers:
//
//     scores = q k^T  ->  shape (soft-cap, ALiBi)  ->  hide  ->  softmax and statistics  ->  output += p v
//
// Every row's arithmetic is the same however many threads run: results are bitwise equal for any number of threads.
// Scores are in units of log2, so that the exponential is 2^x. Keys are numbered by their column in the tensors of the
// call, and so are queries and spans beside them: column = position - kv_offset.

#include <immintrin.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <new>
#include <vector>

#ifdef _OPENMP
#include <omp.h>
#endif

extern "C" {

// What cpu.py fills in, field by field in the same order. Strides count elements; a stride of 0 shares a dimension.
// Null pointers stand for what the request does not have.
struct Request {
    int64_t batch, heads, kv_heads, queries, keys, dim, v_dim, dtype, threads, dry;  // dry: count the work, do none
    const void *q, *k, *v;                                          // innermost dimension contiguous
    void *out;                                                      // dtype of q
    int64_t q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t, o_b, o_h, o_t;
    // MaskSpec
    int64_t causal, window, q_offset, kv_offset;                    // window 0: none
    double scale, softcap;                                          // softcap 0: none
    const float *alibi;                                             // [head]
    const int32_t *starts, *hidden_before;                          // [b t]; hidden keys before a column, [b key+1]
    int64_t starts_b, starts_t, hidden_b;
    // HeadGates
    const float *gate, *add, *logit_scale;                          // [b h t], [b h t v_dim], [b h t]
    int64_t gate_b, gate_h, gate_t, add_b, add_h, add_t, logit_b, logit_h, logit_t;
    // HeadPlan
    const int8_t *computed, *kind;                                  // [b h]; heads not computed give `add`
    const int32_t *plan_sinks, *plan_window;                        // [b h]
    const int32_t *block_offsets, *block_indices;                   // [b h blocks+1], flat
    const int32_t *token_offsets, *token_indices;                   // [b h 2], flat
    int64_t plan_b, query_blocks, block;
    // Keys beside the others: compensation tokens, and sink logits as keys and values of 0
    const float *extra_k, *extra_v, *extra_log;                     // [b kv e dim], [b kv e v_dim], [b h e]
    int64_t extras, extra_k_b, extra_v_b, extra_log_b;
    // CaptureSpec: slots [b t] is the row of the statistics a query goes to, -1: none; times [b t] it is asked for
    const int32_t *slots;
    const float *times;
    int64_t slots_b, captured, spans, topk, strips;
    const int32_t *span_bounds;                                     // [b span 2], columns
    int64_t span_b;
    int64_t *argmax, *topk_key;                                     // [b h slot], [b h slot k]
    float *probability, *entropy, *log_sum_exp, *mass, *topk_probability;
    float *column_sums;                                             // [strip b h key], zeroed
    // Work done: key tiles visited, scores computed, by how many threads
    int64_t tiles, scores, team;
};

int attend(Request *request);
int64_t request_bytes();
}

namespace {

constexpr int kTile = 64;   // keys at a time: K and V of a tile fit the second-level cache, scores the first
constexpr int kPanel = 16;  // keys, or output columns, in two registers
constexpr int kGroup = 6;   // rows whose 6 x 16 accumulators fill twelve of the sixteen registers
constexpr int kRows = 192;  // rows of an item: packing a tile of keys is shared by so many
constexpr int kStrip = 24;  // rows that go through a tile together, so that a panel of keys is loaded once for them

constexpr float kLog2e = 1.4426950408889634f, kLn2 = 0.6931471805599453f;
constexpr float kLowest = -1e30f;  // the maximum of no scores: finite, so that -inf - kLowest is no NaN

enum Type : int64_t { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };
enum Kind : int8_t { kFull = 1, kSparse = 2 };

// ---------------------------------------------------------------------------------------------------- vectors

using Vec = __m256;

inline Vec splat(float x) { return _mm256_set1_ps(x); }

inline float sum_of(Vec x) {
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
}

inline float max_of(Vec x) {
    __m128 half = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    half = _mm_max_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_max_ss(half, _mm_movehdup_ps(half)));
}

// 2^x for x <= 0, exactly 0 below -126.5. NaN stays NaN: the operand order of max matters. `x` returns as it was used.
inline Vec exp2_of(Vec &x) {
    const Vec magic = splat(12582912.f + 127.f);  // 1.5 * 2^23: adding it rounds; 127 is the exponent bias
    x = _mm256_max_ps(splat(-127.f), x);
    const Vec shifted = _mm256_add_ps(x, magic);
    const Vec f = _mm256_sub_ps(x, _mm256_sub_ps(shifted, magic));  // in [-0.5, 0.5]
    Vec p = splat(1.3276472e-3f);                                   // minimax of degree 5, relative error 8e-8
    p = _mm256_fmadd_ps(p, f, splat(9.6755419e-3f));
    p = _mm256_fmadd_ps(p, f, splat(5.5507131e-2f));
    p = _mm256_fmadd_ps(p, f, splat(2.4022120e-1f));
    p = _mm256_fmadd_ps(p, f, splat(6.9314694e-1f));
    p = _mm256_fmadd_ps(p, f, splat(1.f));
    const __m256i power = _mm256_slli_epi32(_mm256_castps_si256(shifted), 23);
    return _mm256_mul_ps(p, _mm256_castsi256_ps(power));
}

// tanh: an odd polynomial near 0, where 1 - 2 / (e^2x + 1) would lose digits, and that formula elsewhere.
inline Vec tanh_of(Vec x) {
    const Vec sign = _mm256_and_ps(x, splat(-0.f));
    const Vec size = _mm256_andnot_ps(splat(-0.f), x);
    const Vec u = _mm256_mul_ps(size, size);
    Vec p = splat(-5.6599891e-3f);
    p = _mm256_fmadd_ps(p, u, splat(2.0590989e-2f));
    p = _mm256_fmadd_ps(p, u, splat(-5.3721067e-2f));
    p = _mm256_fmadd_ps(p, u, splat(1.3331127e-1f));
    p = _mm256_fmadd_ps(p, u, splat(-3.3333260e-1f));
    p = _mm256_fmadd_ps(p, u, splat(1.f));
    Vec power = _mm256_mul_ps(size, splat(-2.f * kLog2e));
    const Vec small = exp2_of(power);  // e^-2|x|
    const Vec far = _mm256_div_ps(_mm256_sub_ps(splat(1.f), small), _mm256_add_ps(splat(1.f), small));
    const Vec near = _mm256_mul_ps(size, p);
    return _mm256_or_ps(sign, _mm256_blendv_ps(far, near, _mm256_cmp_ps(size, splat(0.625f), _CMP_LT_OQ)));
}

inline Vec load_as_float(const void *from, int64_t index, int64_t dtype) {
    if (dtype == kFloat32) return _mm256_loadu_ps(static_cast<const float *>(from) + index);
    const auto *halves = static_cast<const uint16_t *>(from) + index;
    const __m128i raw = _mm_loadu_si128(reinterpret_cast<const __m128i *>(halves));
    if (dtype == kFloat16) return _mm256_cvtph_ps(raw);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(raw), 16));
}

inline void store_from_float(void *to, int64_t index, int64_t dtype, Vec x) {
    if (dtype == kFloat32) return _mm256_storeu_ps(static_cast<float *>(to) + index, x);
    auto *halves = reinterpret_cast<__m128i *>(static_cast<uint16_t *>(to) + index);
    if (dtype == kFloat16) return _mm_storeu_si128(halves, _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
    // bfloat16: round to nearest, ties to even; a NaN keeps its upper half, made quiet so that it stays one
    const __m256i bits = _mm256_castps_si256(x);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    const __m256i kept = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, is_nan), 16);
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(kept, kept), 0x08);
    _mm_storeu_si128(halves, _mm256_castsi256_si128(packed));
}

// ------------------------------------------------------------------------------------------------ dense arithmetic

// Scores of R rows with a panel of keys. q: [dim][kGroup], k: [dim][kPanel], both contiguous.
template <int R>
void score_panel(const float *q, const float *k, int64_t dim, float *scores) {
    Vec sum[R][2];
#pragma GCC unroll 6
    for (int r = 0; r < R; r++) sum[r][0] = sum[r][1] = _mm256_setzero_ps();
#pragma GCC unroll 4
    for (int64_t d = 0; d < dim; d++) {
        const Vec k0 = _mm256_load_ps(k + d * kPanel), k1 = _mm256_load_ps(k + d * kPanel + 8);
#pragma GCC unroll 6
        for (int r = 0; r < R; r++) {
            const Vec x = _mm256_broadcast_ss(q + d * kGroup + r);
            sum[r][0] = _mm256_fmadd_ps(x, k0, sum[r][0]);
            sum[r][1] = _mm256_fmadd_ps(x, k1, sum[r][1]);
        }
    }
#pragma GCC unroll 6
    for (int r = 0; r < R; r++) {
        _mm256_store_ps(scores + r * kTile, sum[r][0]);
        _mm256_store_ps(scores + r * kTile + 8, sum[r][1]);
    }
}

// out = out * decay + p v for R rows and one panel of output columns, over `keys` keys.
template <int R>
void add_values(const float *p, const float *v, int64_t v_stride, int keys, const float *decay, float *out,
                int64_t dim) {
    Vec sum[R][2];
#pragma GCC unroll 6
    for (int r = 0; r < R; r++) {
        sum[r][0] = _mm256_mul_ps(_mm256_load_ps(out + r * dim), splat(decay[r]));
        sum[r][1] = _mm256_mul_ps(_mm256_load_ps(out + r * dim + 8), splat(decay[r]));
    }
#pragma GCC unroll 4
    for (int j = 0; j < keys; j++) {
        const Vec v0 = _mm256_loadu_ps(v + j * v_stride), v1 = _mm256_loadu_ps(v + j * v_stride + 8);
#pragma GCC unroll 6
        for (int r = 0; r < R; r++) {
            const Vec x = _mm256_broadcast_ss(p + r * kTile + j);
            sum[r][0] = _mm256_fmadd_ps(x, v0, sum[r][0]);
            sum[r][1] = _mm256_fmadd_ps(x, v1, sum[r][1]);
        }
    }
#pragma GCC unroll 6
    for (int r = 0; r < R; r++) {
        _mm256_store_ps(out + r * dim, sum[r][0]);
        _mm256_store_ps(out + r * dim + 8, sum[r][1]);
    }
}

using ScorePanel = void (*)(const float *, const float *, int64_t, float *);
using AddValues = void (*)(const float *, const float *, int64_t, int, const float *, float *, int64_t);
constexpr ScorePanel kScorePanel[] = {nullptr,        score_panel<1>, score_panel<2>, score_panel<3>,
                                      score_panel<4>, score_panel<5>, score_panel<6>};
constexpr AddValues kAddValues[] = {nullptr,       add_values<1>, add_values<2>, add_values<3>,
                                    add_values<4>, add_values<5>, add_values<6>};

// Eight rows of eight floats to their transpose, eight rows kPanel apart.
void transpose8(const float *const rows[8], int64_t column, float *to) {
    Vec r[8], t[8];
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) r[i] = _mm256_loadu_ps(rows[i] + column);
#pragma GCC unroll 8
    for (int i = 0; i < 8; i += 2) {
        t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
        t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
    }
#pragma GCC unroll 8
    for (int i = 0; i < 8; i += 4) {
        r[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
        r[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xEE);
        r[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
        r[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xEE);
    }
#pragma GCC unroll 8
    for (int i = 0; i < 4; i++) {
        _mm256_store_ps(to + i * kPanel, _mm256_permute2f128_ps(r[i], r[i + 4], 0x20));
        _mm256_store_ps(to + (i + 4) * kPanel, _mm256_permute2f128_ps(r[i], r[i + 4], 0x31));
    }
}

// -------------------------------------------------------------------------------------------------- work to be done

// Query rows first to first + count - 1 of `heads` consecutive heads of one key/value head.
struct Item {
    int64_t b, head, heads, first, count, strip, cost;
    int64_t rows() const { return heads * count; }
};

struct Range {
    int64_t begin, end;
};

bool is_computed(const Request &r, int64_t b, int64_t h) { return r.computed[b * r.heads + h]; }

int8_t kind_of(const Request &r, int64_t b, int64_t h) { return r.kind ? r.kind[b * r.plan_b + h] : int8_t(kFull); }

float gate_of(const Request &r, int64_t b, int64_t h, int64_t t) {
    return r.gate ? r.gate[b * r.gate_b + h * r.gate_h + t * r.gate_t] : 1.f;
}

float logit_scale_of(const Request &r, int64_t b, int64_t h, int64_t t) {
    return r.logit_scale ? r.logit_scale[b * r.logit_b + h * r.logit_h + t * r.logit_t] : 1.f;
}

int64_t start_of(const Request &r, int64_t b, int64_t t) {
    return r.starts ? r.starts[b * r.starts_b + t * r.starts_t] - r.kv_offset : -r.kv_offset;
}

int64_t column_of(const Request &r, int64_t t) { return r.q_offset + t - r.kv_offset; }

// Columns the mask shows to a query.
Range shown(const Request &r, int64_t b, int64_t t) {
    const int64_t column = column_of(r, t);
    Range range{std::max<int64_t>(0, start_of(r, b, t)), r.keys};
    if (r.causal) range.end = std::min(range.end, column + 1);
    if (r.window) range.begin = std::max(range.begin, column + 1 - r.window);
    return range;
}

bool has_blocks(const Request &r, int64_t b, int64_t h) {
    const int32_t *offsets = r.block_offsets + (b * r.plan_b + h) * (r.query_blocks + 1);
    return offsets[r.query_blocks] > offsets[0];
}

bool has_lists(const Request &r, int64_t b, int64_t h) {
    const int64_t at = b * r.plan_b + h;
    return has_blocks(r, b, h) || r.token_offsets[at * 2 + 1] > r.token_offsets[at * 2];
}

// Heads of a group go through the keys together where they look at the same keys.
bool look_alike(const Request &r, int64_t b, int64_t h, int64_t other) {
    const int64_t x = b * r.plan_b + h, y = b * r.plan_b + other;
    if (is_computed(r, b, h) != is_computed(r, b, other) || kind_of(r, b, h) != kind_of(r, b, other)) return false;
    if (kind_of(r, b, h) != kSparse) return true;
    return r.plan_sinks[x] == r.plan_sinks[y] && r.plan_window[x] == r.plan_window[y] && !has_lists(r, b, h) &&
           !has_lists(r, b, other);
}

// Columns of the keys the rows of an item see between them, ascending and disjoint; `listed` those that all of them
// see if the mask shows them, by a list and not by their distance.
void visible_ranges(const Request &r, const Item &item, std::vector<Range> &seen, std::vector<Range> &listed) {
    seen.clear();
    listed.clear();
    if (!is_computed(r, item.b, item.head)) return;
    Range all{r.keys, 0};
    for (int64_t t = item.first; t < item.first + item.count; t++) {
        const Range range = shown(r, item.b, t);
        if (range.begin >= range.end) continue;
        all = {std::min(all.begin, range.begin), std::max(all.end, range.end)};
    }
    const int8_t kind = kind_of(r, item.b, item.head);
    if (all.begin >= all.end) return;
    if (kind == kFull) {
        seen.push_back(all);
        listed.push_back(all);
        return;
    }
    const int64_t at = item.b * r.plan_b + item.head;
    const int64_t sinks = r.plan_sinks[at], window = r.plan_window[at];
    auto note = [&](std::vector<Range> &ranges, int64_t begin, int64_t end) {
        begin = std::max(begin, all.begin), end = std::min(end, all.end);
        if (begin < end) ranges.push_back({begin, end});
    };
    const int32_t *offsets = r.block_offsets + at * (r.query_blocks + 1);
    const int64_t query_block = (r.q_offset + item.first) / r.block;
    if (query_block < r.query_blocks)
        for (int32_t i = offsets[query_block]; i < offsets[query_block + 1]; i++) {
            const int64_t begin = r.block_indices[i] * r.block - r.kv_offset;
            note(listed, begin, begin + r.block);
        }
    for (int32_t i = r.token_offsets[at * 2]; i < r.token_offsets[at * 2 + 1]; i++)
        note(listed, r.token_indices[i] - r.kv_offset, r.token_indices[i] - r.kv_offset + 1);
    seen = listed;
    if (window) note(seen, column_of(r, item.first) + 1 - window, column_of(r, item.first + item.count - 1) + 1);
    for (int64_t t = item.first; sinks && t < item.first + item.count; t++)
        if (t == item.first || start_of(r, item.b, t) != start_of(r, item.b, t - 1))
            note(seen, start_of(r, item.b, t), start_of(r, item.b, t) + sinks);
    for (auto *ranges : {&seen, &listed}) {
        std::sort(ranges->begin(), ranges->end(), [](Range x, Range y) { return x.begin < y.begin; });
        size_t kept = 0;
        for (const Range &next : *ranges) {
            if (kept && next.begin <= (*ranges)[kept - 1].end)
                (*ranges)[kept - 1].end = std::max((*ranges)[kept - 1].end, next.end);
            else
                (*ranges)[kept++] = next;
        }
        ranges->resize(kept);
    }
}

// Items in units that one thread works through in order, the dearest unit first so that none is left for the end.
// Column sums of a head are summed in `strips` units, in an order that does not depend on the threads.
std::vector<std::vector<Item>> units_of(const Request &r) {
    const int64_t group = r.heads / r.kv_heads;
    const int64_t most = r.column_sums ? kRows / 2 : kRows;  // column sums keep an item's probabilities for a while
    const bool together = group * r.queries <= most;
    std::vector<std::vector<Item>> units;
    std::vector<Range> seen, listed;
    for (int64_t b = 0; b < r.batch; b++) {
        for (int64_t head = 0; head < r.heads;) {
            int64_t heads = 1;
            while (together && (head + heads) % group && look_alike(r, b, head, head + heads)) heads++;
            const bool aligned = kind_of(r, b, head) == kSparse && has_blocks(r, b, head);
            std::vector<Item> items;
            for (int64_t first = 0, count; first < r.queries; first += count) {
                count = std::min(most, r.queries - first);
                if (aligned) count = std::min(count, r.block - (r.q_offset + first) % r.block);
                Item item{b, head, heads, first, count, 0, 0};
                visible_ranges(r, item, seen, listed);
                for (const Range &range : seen) item.cost += (range.end - range.begin) * item.rows();
                items.push_back(item);
            }
            const size_t strips = r.strips ? std::min<size_t>(r.strips, items.size()) : items.size();
            for (size_t strip = 0; strip < strips; strip++) {
                units.emplace_back();
                for (size_t i = strip; i < items.size(); i += strips) {
                    items[i].strip = int64_t(strip);
                    units.back().push_back(items[i]);
                }
            }
            head += heads;
        }
    }
    auto cost = [](const std::vector<Item> &unit) {
        int64_t sum = 0;
        for (const Item &item : unit) sum += item.cost;
        return sum;
    };
    std::stable_sort(units.begin(), units.end(), [&](const auto &x, const auto &y) { return cost(x) > cost(y); });
    return units;
}

// ------------------------------------------------------------------------------------------------------- one thread

struct Free {
    void operator()(void *p) const { std::free(p); }
};

template <typename T>
class Buffer {
  public:
    void grow(size_t count) {
        if (data_ && count <= size_) return;
        const size_t bytes = (count * sizeof(T) + 64) / 64 * 64;  // never none
        data_.reset(static_cast<T *>(std::aligned_alloc(64, bytes)));
        if (!data_) throw std::bad_alloc();
        size_ = count;
    }
    operator T *() const { return data_.get(); }

  private:
    std::unique_ptr<T[], Free> data_;
    size_t size_ = 0;
};

// Up to kTile keys, ascending. Columns past `count` are beyond every row's sight.
struct Tile {
    alignas(32) int32_t column[kTile];
    alignas(32) int32_t listed[kTile];  // -1: seen whatever its distance
    alignas(32) int32_t hidden[kTile];  // -1: padding
    int count;
    bool contiguous, all_listed, any_listed, any_hidden;
    int32_t first() const { return column[0]; }
    int32_t last() const { return column[count - 1]; }
};

// The keys of an item, tile by tile.
class TileWalk {
  public:
    void start(const Request &r, const Item &item) {
        visible_ranges(r, item, seen_, listed_);
        range_ = mark_ = 0;
        at_ = seen_.empty() ? 0 : seen_[0].begin;
    }

    size_t keys() const {
        size_t sum = 0;
        for (const Range &range : seen_) sum += range.end - range.begin;
        return sum;
    }

    // The next keys, across the gaps between ranges. False when none are left.
    bool next(Tile &t) {
        t.count = 0;
        t.all_listed = true, t.any_listed = false;
        while (t.count < kTile && range_ < seen_.size()) {
            if (at_ == seen_[range_].end) {
                if (++range_ < seen_.size()) at_ = seen_[range_].begin;
                continue;
            }
            while (mark_ < listed_.size() && listed_[mark_].end <= at_) mark_++;
            const bool listed = mark_ < listed_.size() && listed_[mark_].begin <= at_;
            int64_t stop = std::min(seen_[range_].end, at_ + kTile - t.count);
            if (mark_ < listed_.size()) stop = std::min(stop, listed ? listed_[mark_].end : listed_[mark_].begin);
            for (; at_ < stop; at_++, t.count++) t.column[t.count] = int32_t(at_), t.listed[t.count] = listed ? -1 : 0;
            t.all_listed &= listed, t.any_listed |= listed;
        }
        if (!t.count) return false;
        t.contiguous = t.last() - t.first() == t.count - 1;
        for (int j = t.count; j < kTile; j++) t.column[j] = std::numeric_limits<int32_t>::max(), t.listed[j] = 0;
        return true;
    }

  private:
    std::vector<Range> seen_, listed_;
    size_t range_, mark_;  // where the walk is in the two
    int64_t at_;           // the next column
};

// What each key receives from the rows of an item. A probability is known when its row has met all keys, so those of
// every tile are kept, relative to the row maxima of the time, until then: [tile][row][kTile].
class ColumnSums {
  public:
    void start(int64_t rows, size_t keys) {
        rows_ = rows;
        tiles_.clear();
        p_.grow((keys + kTile - 1) / kTile * kTile * rows);
    }

    void note_tile(const Tile &tile) {
        tiles_.emplace_back();
        std::memcpy(tiles_.back().column, tile.column, sizeof tile.column);
        tiles_.back().count = tile.count;
        std::fill_n(tiles_.back().max, kRows, kLowest);
    }

    void note_row(int64_t i, float max, const float *p, int begin, int end) {
        tiles_.back().max[i] = max;
        float *to = p_ + ((tiles_.size() - 1) * rows_ + i) * kTile;
        std::fill_n(to, begin, 0.f);
        std::memcpy(to + begin, p + begin, (end - begin) * sizeof(float));
        std::fill_n(to + end, kTile - end, 0.f);
    }

    // Add what the rows [first, last) give, row i times[i - first] times, in units of 2^lse.
    void add_to(float *sums, int64_t first, int64_t last, const float *lse, const float *times) const {
        for (size_t n = 0; n < tiles_.size(); n++) {
            alignas(32) float sum[kTile] = {};
            for (int64_t i = first; i < last; i++) {
                if (tiles_[n].max[i] == kLowest) continue;
                const Vec weight = splat(std::exp2(tiles_[n].max[i] - lse[i]) * times[i - first]);
                const float *p = p_ + (n * rows_ + i) * kTile;
                for (int j = 0; j < kTile; j += 8)
                    _mm256_store_ps(sum + j, _mm256_fmadd_ps(weight, _mm256_load_ps(p + j), _mm256_load_ps(sum + j)));
            }
            for (int j = 0; j < tiles_[n].count; j++) sums[tiles_[n].column[j]] += sum[j];
        }
    }

  private:
    struct Past {
        int32_t column[kTile];
        int count;
        float max[kRows];
    };
    std::vector<Past> tiles_;
    Buffer<float> p_;
    int64_t rows_;
};

// A query row on its way through the keys.
struct Row {
    int64_t head, t, slot;
    int32_t begin, end;           // columns the mask shows
    int32_t sink_end, near;       // a sparse head's first and latest keys: column < sink_end or column >= near
    int32_t position;             // column of the query
    float slope, factor;          // ALiBi; logit scale in units of log2, where it is not in q already
    float max;                    // of the scores so far
    int64_t argmax;
};

class Worker {
  public:
    explicit Worker(const Request &request) : r(request) {
        shaped_ = r.softcap != 0 || r.alibi;
        q_.grow((kRows + kGroup) * r.dim);
        out_.grow((kRows + kGroup) * r.v_dim);
        k_.grow(kTile * r.dim);
        k_rows_.grow(kTile * r.dim);
        v_rows_.grow(kTile * r.v_dim);
        zeros_.grow(std::max(r.dim, r.v_dim));
        std::memset(zeros_, 0, std::max(r.dim, r.v_dim) * sizeof(float));
        mass_.grow(kRows * r.spans * 8);
        span_weight_.grow(r.spans * kTile);
        best_.resize(kRows * r.topk);
    }

    int64_t tiles = 0, scores = 0;

    void work(const Item &item) {
        if (!is_computed(r, item.b, item.head)) {
            if (!r.dry) finish_removed(item);
            return;
        }
        begin(item);
        while (walk_.next(tile_)) visit(item);
        scores += item.rows() * r.extras;
        if (r.dry) return;
        finish(item);
        for (int64_t h = 0; sums_columns_ && h < item.heads; h++)
            column_sums_.add_to(r.column_sums + ((item.strip * r.batch + item.b) * r.heads + item.head + h) * r.keys,
                                h * item.count, (h + 1) * item.count, lse_, r.times + item.b * r.slots_b + item.first);
    }

  private:
    const Request &r;
    bool shaped_, measured_, sums_columns_;
    Range common_;  // columns that the mask shows to every row
    Row rows_[kRows];
    Tile tile_;
    Buffer<float> q_, out_, k_, k_rows_, v_rows_, zeros_, mass_, span_weight_;
    alignas(64) float score_[kStrip][kTile];
    alignas(64) float total_[kRows][8], moment_[kRows][8];  // sum of p, sum of p * (score - max), in eight lanes
    alignas(64) float decay_[kRows + kGroup];
    std::vector<int> spans_here_;
    struct Best {
        float score;
        int32_t column;
    };
    std::vector<Best> best_;
    TileWalk walk_;
    ColumnSums column_sums_;
    float lse_[kRows];  // in units of log2; of a row that sees nothing, +inf

    void begin(const Item &item) {
        const int64_t n = item.rows();
        measured_ = false;
        common_ = {0, r.keys};
        const int8_t kind = kind_of(r, item.b, item.head);
        const int64_t plan = item.b * r.plan_b + item.head;
        for (int64_t i = 0; i < n; i++) {
            Row &row = rows_[i];
            row.head = item.head + i / item.count;
            row.t = item.first + i % item.count;
            row.slot = r.captured ? r.slots[item.b * r.slots_b + row.t] : -1;
            measured_ |= row.slot >= 0;
            const Range range = shown(r, item.b, row.t);
            common_ = {std::max(common_.begin, range.begin), std::min(common_.end, range.end)};
            row.begin = int32_t(range.begin), row.end = int32_t(std::max<int64_t>(range.end, 0));
            row.position = int32_t(column_of(r, row.t));
            row.sink_end = row.near = row.begin;
            if (kind == kSparse) {
                row.sink_end = int32_t(std::min(start_of(r, item.b, row.t) + r.plan_sinks[plan], r.keys));
                row.near = row.position + 1 - r.plan_window[plan];
            }
            row.slope = r.alibi ? r.alibi[row.head] : 0.f;
            const float logit_scale = logit_scale_of(r, item.b, row.head, row.t) * kLog2e;
            row.factor = shaped_ ? logit_scale : 1.f;
            row.max = kLowest;
            row.argmax = -1;
            if (!r.dry) load_query(item, i, float(r.scale) * (shaped_ ? 1.f : logit_scale));
        }
        std::memset(out_, 0, n * r.v_dim * sizeof(float));
        std::memset(total_, 0, n * sizeof total_[0]);
        std::memset(moment_, 0, n * sizeof moment_[0]);
        std::memset(mass_, 0, n * r.spans * 8 * sizeof(float));
        std::fill(best_.begin(), best_.end(), Best{-std::numeric_limits<float>::infinity(), -1});
        walk_.start(r, item);
        sums_columns_ = r.column_sums && measured_ && !r.dry;
        if (sums_columns_) column_sums_.start(n, walk_.keys());
    }

    // q is kept as [group][dim][kGroup].
    void load_query(const Item &item, int64_t i, float factor) {
        const int64_t from = item.b * r.q_b + rows_[i].head * r.q_h + rows_[i].t * r.q_t;
        alignas(32) float eight[8];
        for (int64_t d = 0; d < r.dim; d += 8) {
            const Vec x = _mm256_mul_ps(load_as_float(r.q, from + d, r.dtype), splat(factor));
            _mm256_store_ps(eight, x);
            float *to = q_ + i / kGroup * kGroup * r.dim + d * kGroup + i % kGroup;
            for (int lane = 0; lane < 8; lane++) to[lane * kGroup] = eight[lane];
        }
    }

    // Which keys of the tile are padding.
    void note_hidden(const Item &item) {
        Tile &t = tile_;
        t.any_hidden = false;
        if (!r.hidden_before) return;
        const int32_t *before = r.hidden_before + item.b * r.hidden_b;
        t.any_hidden = before[t.last() + 1] > before[t.first()];
        if (!t.any_hidden) return;
        for (int j = 0; j < kTile; j++)
            t.hidden[j] = j < t.count && before[t.column[j] + 1] > before[t.column[j]] ? -1 : 0;
    }

    // Which spans the tile touches, and which of its keys lie in each.
    void note_spans(const Item &item) {
        spans_here_.clear();
        for (int64_t n = 0; n < r.spans; n++) {
            const int32_t *span = r.span_bounds + item.b * r.span_b + n * 2;
            if (span[1] <= tile_.first() || span[0] > tile_.last()) continue;
            spans_here_.push_back(int(n));
            float *weight = span_weight_ + n * kTile;
            for (int j = 0; j < kTile; j++)
                weight[j] = tile_.column[j] >= span[0] && tile_.column[j] < span[1] ? 1.f : 0.f;
        }
    }

    struct Matrix {
        const float *data;
        int64_t stride;
    };

    // The tile's rows of K or V as floats: where they are, if that will do, or copied.
    Matrix rows_of(const void *from, int64_t base, int64_t stride, int64_t dim, Buffer<float> &copy) {
        if (tile_.contiguous && r.dtype == kFloat32)
            return {static_cast<const float *>(from) + base + tile_.first() * stride, stride};
        for (int j = 0; j < tile_.count; j++)
            for (int64_t d = 0; d < dim; d += 8)
                _mm256_store_ps(copy + j * dim + d, load_as_float(from, base + tile_.column[j] * stride + d, r.dtype));
        return {copy, dim};
    }

    // The tile's keys as panels [dim][kPanel].
    void pack_keys(const Matrix &k) {
        for (int j = 0; j < tile_.count; j += 8) {
            const float *eight[8];
            for (int i = 0; i < 8; i++) eight[i] = j + i < tile_.count ? k.data + (j + i) * k.stride : zeros_;
            float *to = k_ + j / kPanel * kPanel * r.dim + j % kPanel;
            for (int64_t d = 0; d < r.dim; d += 8) transpose8(eight, d, to + d * kPanel);
        }
        if (tile_.count % kPanel && tile_.count % kPanel <= 8) {  // the panel's second half: finite, and hidden later
            float *to = k_ + tile_.count / kPanel * kPanel * r.dim + 8;
            for (int64_t d = 0; d < r.dim; d++) _mm256_store_ps(to + d * kPanel, _mm256_setzero_ps());
        }
    }

    // All rows of the item meet the tile.
    void visit(const Item &item) {
        tiles++;
        if (r.dry) return count(item);
        note_hidden(item);
        if (measured_) note_spans(item);
        const int64_t kv = item.head / (r.heads / r.kv_heads);
        pack_keys(rows_of(r.k, item.b * r.k_b + kv * r.k_h, r.k_t, r.dim, k_rows_));
        const Matrix v = rows_of(r.v, item.b * r.v_b + kv * r.v_h, r.v_t, r.v_dim, v_rows_);
        const int n = int(item.rows());
        if (sums_columns_) column_sums_.note_tile(tile_);
        for (int first = 0; first < n; first += kStrip) meet(v, first, std::min(n, first + kStrip));
    }

    // Panels of the tile that some row of [first, last) sees.
    Range panels_seen(int first, int last) const {
        if (!tile_.contiguous) return {0, (tile_.count + kPanel - 1) / kPanel};
        int32_t begin = tile_.last() + 1, end = tile_.first();
        for (int i = first; i < last; i++) {
            const Row &row = rows_[i];
            const bool by_distance = !tile_.any_listed && tile_.first() >= row.sink_end;
            begin = std::min(begin, by_distance ? std::max(row.begin, row.near) : row.begin);
            end = std::max(end, row.end);
        }
        begin = std::max(begin - tile_.first(), 0), end = std::min(end - tile_.first(), tile_.count);
        return {begin / kPanel, (end + kPanel - 1) / kPanel};
    }

    // The work of a dry run.
    void count(const Item &item) {
        if (tile_.all_listed && tile_.first() >= common_.begin && tile_.last() < common_.end) {
            scores += (tile_.count + kPanel - 1) / kPanel * kPanel * item.rows();
            return;
        }
        for (int g = 0, n = int(item.rows()); g < n; g += kGroup) {
            const Range seen = panels_seen(g, std::min(n, g + kGroup));
            scores += std::max<int64_t>(0, seen.end - seen.begin) * kPanel * std::min(kGroup, n - g);
        }
    }

    // A strip of rows meets the tile.
    void meet(const Matrix &v, int first, int last) {
        Range panels[kStrip / kGroup];
        for (int g = first; g < last; g += kGroup)
            panels[(g - first) / kGroup] = panels_seen(g, std::min(last, g + kGroup));
        for (int64_t panel = 0; panel < kTile / kPanel; panel++)
            for (int g = first; g < last; g += kGroup) {
                const Range &seen = panels[(g - first) / kGroup];
                if (panel >= seen.begin && panel < seen.end)
                    kScorePanel[std::min(kGroup, last - g)](q_ + g * r.dim, k_ + panel * kPanel * r.dim, r.dim,
                                                            &score_[g - first][panel * kPanel]);
            }
        for (int g = first; g < last; g += kGroup) {
            const Range &seen = panels[(g - first) / kGroup];
            const int n = std::min(kGroup, last - g), begin = int(seen.begin * kPanel), end = int(seen.end * kPanel);
            if (begin >= end) continue;
            scores += int64_t(n) * (end - begin);
            for (int i = g; i < g + n; i++) {
                float *score = score_[i - first];
                if (shaped_) shape_scores(rows_[i], score, begin, end);
                if (!sees_all(rows_[i], end)) hide_scores(rows_[i], score, begin, end);
                if (rows_[i].slot >= 0)
                    softmax<true>(i, score, begin, end);
                else
                    softmax<false>(i, score, begin, end);
            }
            const int keys = std::min(end, tile_.count) - begin;
            for (int64_t d = 0; d < r.v_dim; d += kPanel)
                kAddValues[n](&score_[g - first][begin], v.data + begin * v.stride + d, v.stride, keys, decay_ + g,
                              out_ + g * r.v_dim + d, r.v_dim);
        }
    }

    // Soft-cap, ALiBi and logit scale, in this order.
    void shape_scores(const Row &row, float *score, int begin, int end) {
        const Vec cap = splat(float(r.softcap)), slope = splat(row.slope), factor = splat(row.factor);
        const __m256i position = _mm256_set1_epi32(row.position);
        for (int j = begin; j < end; j += 8) {
            Vec s = _mm256_load_ps(score + j);
            if (r.softcap != 0) s = _mm256_mul_ps(cap, tanh_of(_mm256_div_ps(s, cap)));
            const __m256i column = _mm256_load_si256(reinterpret_cast<const __m256i *>(tile_.column + j));
            s = _mm256_fmadd_ps(slope, _mm256_cvtepi32_ps(_mm256_sub_epi32(column, position)), s);
            _mm256_store_ps(score + j, _mm256_mul_ps(s, factor));
        }
    }

    bool sees_all(const Row &row, int end) const {
        return end <= tile_.count && tile_.first() >= row.begin && tile_.last() < row.end && !tile_.any_hidden &&
               (tile_.all_listed || tile_.first() >= row.near || tile_.last() < row.sink_end);
    }

    // -inf for the keys that the row does not see.
    void hide_scores(const Row &row, float *score, int begin, int end) {
        const auto at = [](const int32_t *from) { return _mm256_load_si256(reinterpret_cast<const __m256i *>(from)); };
        const __m256i before = _mm256_set1_epi32(row.begin - 1), after = _mm256_set1_epi32(row.end);
        const __m256i sinks = _mm256_set1_epi32(row.sink_end), far = _mm256_set1_epi32(row.near - 1);
        const Vec nothing = splat(-std::numeric_limits<float>::infinity());
        for (int j = begin; j < end; j += 8) {
            const __m256i column = at(tile_.column + j);
            __m256i seen = _mm256_or_si256(_mm256_cmpgt_epi32(sinks, column), _mm256_cmpgt_epi32(column, far));
            seen = _mm256_or_si256(seen, at(tile_.listed + j));
            seen = _mm256_and_si256(seen, _mm256_cmpgt_epi32(column, before));
            seen = _mm256_and_si256(seen, _mm256_cmpgt_epi32(after, column));
            if (tile_.any_hidden) seen = _mm256_andnot_si256(at(tile_.hidden + j), seen);
            _mm256_store_ps(score + j, _mm256_blendv_ps(nothing, _mm256_load_ps(score + j), _mm256_castsi256_ps(seen)));
        }
    }

    // Scores of one row become probabilities relative to its running maximum; sums and statistics follow.
    template <bool kMeasured>
    void softmax(int i, float *score, int begin, int end) {
        Row &row = rows_[i];
        if (kMeasured && r.topk) note_best(i, score, begin, end);
        Vec top = _mm256_load_ps(score + begin);
        for (int j = begin + 8; j < end; j += 8) top = _mm256_max_ps(top, _mm256_load_ps(score + j));
        decay_[i] = 1.f;
        if (_mm256_movemask_ps(_mm256_cmp_ps(top, splat(row.max), _CMP_GT_OQ))) {
            raise_maximum<kMeasured>(i, max_of(top));
            if (kMeasured) row.argmax = tile_.column[first_equal(score, begin, end, row.max)];
        }
        const Vec max = splat(row.max);
        Vec total = _mm256_load_ps(total_[i]), moment = _mm256_load_ps(moment_[i]);
        for (int j = begin; j < end; j += 8) {
            Vec x = _mm256_sub_ps(_mm256_load_ps(score + j), max);
            const Vec p = exp2_of(x);
            _mm256_store_ps(score + j, p);
            total = _mm256_add_ps(total, p);
            if (kMeasured) moment = _mm256_fmadd_ps(p, x, moment);
        }
        _mm256_store_ps(total_[i], total);
        if (!kMeasured) return;
        _mm256_store_ps(moment_[i], moment);
        for (const int n : spans_here_) {
            float *mass = mass_ + (i * r.spans + n) * 8;
            Vec sum = _mm256_load_ps(mass);
            for (int j = begin; j < end; j += 8)
                sum = _mm256_fmadd_ps(_mm256_load_ps(score + j), _mm256_load_ps(span_weight_ + n * kTile + j), sum);
            _mm256_store_ps(mass, sum);
        }
        if (sums_columns_) column_sums_.note_row(i, row.max, score, begin, end);
    }

    // What was summed relative to the old maximum becomes relative to the new one.
    template <bool kMeasured>
    void raise_maximum(int i, float max) {
        const float step = rows_[i].max - max, decay = std::exp2(step);
        const Vec total = _mm256_load_ps(total_[i]), d = splat(decay);
        if (kMeasured) {
            const Vec shift = decay == 0.f ? _mm256_setzero_ps() : _mm256_mul_ps(total, splat(step));
            _mm256_store_ps(moment_[i], _mm256_mul_ps(_mm256_add_ps(_mm256_load_ps(moment_[i]), shift), d));
            for (int64_t n = 0; n < r.spans; n++) {
                float *mass = mass_ + (i * r.spans + n) * 8;
                _mm256_store_ps(mass, _mm256_mul_ps(_mm256_load_ps(mass), d));
            }
        }
        _mm256_store_ps(total_[i], _mm256_mul_ps(total, d));
        rows_[i].max = max;
        decay_[i] = decay;
    }

    static int first_equal(const float *score, int begin, int end, float value) {
        for (int j = begin; j < end; j += 8) {
            const int equal = _mm256_movemask_ps(_mm256_cmp_ps(_mm256_load_ps(score + j), splat(value), _CMP_EQ_OQ));
            if (equal) return j + __builtin_ctz(equal);
        }
        return begin;
    }

    // The topk highest scores so far, descending; among equals the key met first, which is the lower one.
    void note_best(int i, const float *score, int begin, int end) {
        Best *best = best_.data() + i * r.topk;
        for (int j = begin; j < end; j++) {
            if (!(score[j] > best[r.topk - 1].score)) continue;
            int64_t at = r.topk - 1;
            for (; at > 0 && score[j] > best[at - 1].score; at--) best[at] = best[at - 1];
            best[at] = {score[j], tile_.column[j]};
        }
    }

    // All keys met: extra keys and sinks take part, then out go the output and the statistics.
    void finish(const Item &item) {
        const int64_t n = item.rows();
        for (int64_t i = 0; i < n; i++) {
            Row &row = rows_[i];
            float *out = out_ + i * r.v_dim;
            const float keys = sum_of(_mm256_load_ps(total_[i]));  // what the keys sum to
            float max = row.max, all = keys;                       // with sink logits and extra keys
            auto admit = [&](float score, const float *value) {
                const float higher = std::max(max, score), old = std::exp2(max - higher), p = std::exp2(score - higher);
                max = higher, all = all * old + p;
                for (int64_t d = 0; d < r.v_dim; d++) out[d] = out[d] * old + p * value[d];
            };
            for (int64_t e = 0; e < r.extras; e++) admit_extra(item, i, e, admit);
            const float inverse = all == 0.f ? 0.f : 1.f / all;
            write_out(item.b, row, out, inverse);
            if (row.slot >= 0) write_statistics(item.b, i, max, all, keys);
            lse_[i] = all == 0.f ? std::numeric_limits<float>::infinity() : max + std::log2(all);
        }
    }

    template <typename Admit>
    void admit_extra(const Item &item, int64_t i, int64_t e, const Admit &admit) {
        const Row &row = rows_[i];
        const float log_count = r.extra_log[item.b * r.extra_log_b + row.head * r.extras + e];
        if (log_count == -std::numeric_limits<float>::infinity()) return;
        const int64_t at = row.head / (r.heads / r.kv_heads) * r.extras + e;
        const float *k = r.extra_k + item.b * r.extra_k_b + at * r.dim;
        const float *v = r.extra_v + item.b * r.extra_v_b + at * r.v_dim;
        const float *q = q_ + i / kGroup * kGroup * r.dim + i % kGroup;
        float score = 0.f;
        for (int64_t d = 0; d < r.dim; d++) score += q[d * kGroup] * k[d];
        admit(score * row.factor + log_count * kLog2e, v);
    }

    // z' = gate * z + add
    void write_out(int64_t b, const Row &row, const float *out, float inverse) {
        const float gate = gate_of(r, b, row.head, row.t);
        if (gate == 0.f) out = zeros_;  // whatever z holds, NaN too
        const Vec factor = splat(gate == 0.f ? 0.f : gate * inverse);
        const float *add = r.add ? r.add + b * r.add_b + row.head * r.add_h + row.t * r.add_t : nullptr;
        for (int64_t d = 0; d < r.v_dim; d += 8) {
            Vec z = _mm256_mul_ps(_mm256_load_ps(out + d), factor);
            if (add) z = _mm256_add_ps(z, _mm256_loadu_ps(add + d));
            store_from_float(r.out, b * r.o_b + row.head * r.o_h + row.t * r.o_t + d, r.dtype, z);
        }
    }

    // `max` and `all` make the log-sum-exp; `keys` is the part of `all` that ordinary keys hold.
    void write_statistics(int64_t b, int64_t i, float max, float all, float keys) {
        const Row &row = rows_[i];
        const int64_t at = (b * r.heads + row.head) * r.captured + row.slot;
        const float peak = std::exp2(row.max - max);  // the keys' sums are relative to row.max, `all` to max
        const float per_all = all == 0.f ? 0.f : peak / all;
        const float lse = max + std::log2(all);
        if (r.argmax) r.argmax[at] = row.argmax < 0 ? -1 : row.argmax + r.kv_offset;
        if (r.probability) r.probability[at] = row.argmax < 0 ? 0.f : per_all;
        if (r.log_sum_exp) r.log_sum_exp[at] = all == 0.f ? -std::numeric_limits<float>::infinity() : lse * kLn2;
        if (r.entropy) {
            const float moment = sum_of(_mm256_load_ps(moment_[i]));
            r.entropy[at] = keys == 0.f ? 0.f : kLn2 * per_all * (keys * (lse - row.max) - moment);
        }
        for (int64_t n = 0; n < r.spans; n++)
            r.mass[at * r.spans + n] = sum_of(_mm256_load_ps(mass_ + (i * r.spans + n) * 8)) * per_all;
        for (int64_t n = 0; n < r.topk; n++) {
            const Best &best = best_[i * r.topk + n];
            r.topk_key[at * r.topk + n] = best.column < 0 ? -1 : best.column + r.kv_offset;
            r.topk_probability[at * r.topk + n] = best.column < 0 ? 0.f : std::exp2(best.score - lse);
        }
    }

    // Heads that are not computed: z is 0.
    void finish_removed(const Item &item) {
        for (int64_t i = 0; i < item.rows(); i++) {
            Row row{};
            row.head = item.head + i / item.count;
            row.t = item.first + i % item.count;
            write_out(item.b, row, zeros_, 0.f);
        }
    }
};

}  // namespace

int64_t request_bytes() { return sizeof(Request); }

// 0: done; 1: out of memory.
int attend(Request *request) {
    Request &r = *request;
    try {
        const auto units = units_of(r);
        const int threads = int(std::max<int64_t>(1, std::min<int64_t>(r.threads, int64_t(units.size()))));
        std::vector<std::unique_ptr<Worker>> workers;
        for (int i = 0; i < threads; i++) workers.push_back(std::make_unique<Worker>(r));
        std::atomic<size_t> next{0};
        std::atomic<bool> failed{false};
#pragma omp parallel num_threads(threads)
        {
#ifdef _OPENMP
            Worker &worker = *workers[omp_get_thread_num()];
#pragma omp single nowait
            r.team = omp_get_num_threads();
#else
            Worker &worker = *workers[0];
#endif
            try {
                for (size_t unit; (unit = next++) < units.size();)
                    for (const Item &item : units[unit]) worker.work(item);
            } catch (const std::bad_alloc &) {
                failed = true;
            }
        }
        for (const auto &worker : workers) r.tiles += worker->tiles, r.scores += worker->scores;
        return failed ? 1 : 0;
    } catch (const std::bad_alloc &) {
        return 1;
    }
}
