// What a Plan looks like on the device. tables.py writes these tables; the struct members are its columns.
//
// A Segment is a list of keys that a tile of queries attends: the keys of a view's blocks, the exact keys, the sampled
// keys, or simply all keys. A Sweep is one rectangle (or leaf, or head) with the queries in one order and the segments
// that this order serves. A rectangle with several views takes one sweep for each; the state of its queries, and that
// of queries which belong to several rectangles, is carried from one sweep to the next in global memory.
#pragma once
#include "numbers.cuh"

// Which list of keys, and which pairs of it count. Positions are entries of the table `indices`; -1 means none.
struct Segment {
    long long keys;     // position of the list; none: key j is at place j
    long long n;        // its length
    long long offsets;  // position of the view's key offsets: a tile attends the blocks of its queries; none: all keys
    long long weights;  // place of the log-weights in the table `weights`; none: 0
    long long views;    // how many views are consulted, the first ones of the sweep; the last sorts its queries ...
    long long inside;   // ... 1: the last of them must hold the pair, the others not; 0: none may hold it
    long long causal;   // 1: query i meets the keys 0 .. i only; neither the keys nor the queries have an order then
};

constexpr int MOST_SEGMENTS = 3;  // of a sweep

struct Sweep {
    long long head;
    long long query_start, key_start;    // place of the rectangle in its head
    long long n_q, n_k;                  // its sides; queries and keys are numbered from its own first ones
    long long query_order;               // position of the order of the queries; none: 0 .. n_q - 1
    long long segment, n_segments;       // its segments in their table
    long long query_blocks, key_blocks;  // positions of the block numbers, (views, n_q) and (views, n_k)
    long long first, last;               // whether its queries start anew, and whether they are finished by it
};

// Rows that are hashed together: one side of a rectangle (or of a whole head) and its set of hyperplanes.
struct Side {
    long long head;
    long long start, n;  // its rows within the head
    long long planes;    // number of the set
    long long codes;     // place of its first code in the array of codes
};

// A run of codes that is sorted: those of one Side. Its rows are numbered from 0.
struct Run {
    long long n;                   // its length
    long long codes;               // place of its first code
    long long order;               // position of its order: the row at each sorted place
    long long blocks;              // position of its block numbers, in the order of the rows
    long long others, block_size;  // the row at place p belongs to block floor(floor(p others / n) / block_size)
    long long counts;              // place of its counts of digits in their table, 256 for each 4096 rows
};

// One head of an array (heads, n, d) with any strides. `layout` is: stride of rows, stride of columns, then the place
// of each head, in elements.
template <class Storage> struct Matrix {
    const Storage *data;
    long long row, column;

    __device__ Matrix(const Storage *array, const long long *layout, long long head, long long start)
        : data(array + layout[2 + head] + start * layout[0]), row(layout[0]), column(layout[1]) {}
    __device__ const Storage *at(int i, int j) const { return data + i * row + j * column; }

    // Whether rows of d columns consist of pieces of 16 bytes at multiples of 16 bytes.
    __device__ bool is_aligned(int d) const {
        constexpr int WHOLE = 16 / sizeof(Storage);
        const bool starts_so = reinterpret_cast<unsigned long long>(data) % 16 == 0;
        return starts_so && column == 1 && row % WHOLE == 0 && d % WHOLE == 0;
    }
};

// The block numbers of a few views: a view holds the pair of query i and key j if their numbers agree.
struct Blocks {
    const int *query, *key;
    int n_q, n_k;

    __device__ int of_query(int view, int i) const { return query[static_cast<long long>(view) * n_q + i]; }
    __device__ int of_key(int view, int j) const { return key[static_cast<long long>(view) * n_k + j]; }
};

__device__ inline Blocks blocks_of(const Sweep &sweep, const int *indices) {
    return {indices + sweep.query_blocks, indices + sweep.key_blocks, static_cast<int>(sweep.n_q),
            static_cast<int>(sweep.n_k)};
}

// Hides the pairs of a tile of logits that do not exist: a missing key has the number -1, and a causal query i meets
// the keys 0 .. i. (Missing queries need no care: nothing of theirs is ever stored.)
template <int N_ROWS, int N_COLUMNS, class Real>
__device__ inline void hide_absent(bool is_causal, const int (&query)[N_ROWS], const int (&key)[N_COLUMNS],
                                   Real (&logits)[N_ROWS][N_COLUMNS]) {
#pragma unroll
    for (int r = 0; r < N_ROWS; ++r)
#pragma unroll
        for (int c = 0; c < N_COLUMNS; ++c)
            if (key[c] < 0 || (is_causal && key[c] > query[r])) logits[r][c] = Real(HIDDEN);
}

// Hides the pairs that one of the first `views` views holds; with `inside` the last of them must hold the pair instead.
template <int N_ROWS, int N_COLUMNS, class Real>
__device__ inline void hide_marked(const Blocks &blocks, int views, bool inside, const int (&query)[N_ROWS],
                                   const int (&key)[N_COLUMNS], Real (&logits)[N_ROWS][N_COLUMNS]) {
    for (int view = 0; view < views; ++view) {
        const bool must_hold = inside && view == views - 1;
        int key_block[N_COLUMNS];
#pragma unroll
        for (int c = 0; c < N_COLUMNS; ++c) key_block[c] = blocks.of_key(view, larger(key[c], 0));
#pragma unroll
        for (int r = 0; r < N_ROWS; ++r) {
            const int query_block = blocks.of_query(view, larger(query[r], 0));
#pragma unroll
            for (int c = 0; c < N_COLUMNS; ++c)
                if ((query_block == key_block[c]) != must_hold) logits[r][c] = Real(HIDDEN);
        }
    }
}

// The places [begin, end) of a segment's list that the queries of a tile can meet. `block`, unless -1: keys of this
// block, in the view after those that are consulted, meet none of them.
struct Range {
    int begin, end, block;

    __device__ bool meets(int views, const Blocks &blocks, int key) const {
        return block < 0 || blocks.of_key(views, key) != block;
    }

    // Whether n keys from this place on exist for every query from `first_query` on.
    __device__ bool is_whole(int place, int n, const Segment &segment, int first_query) const {
        return place + n <= end && (!segment.causal || place + n - 1 <= first_query);
    }
};

// The range of a tile. Its queries are sorted by the last view that is consulted. Where they lie in one block of it,
// that view says the same to all of them, and the segment is told not to ask it for every pair: its keys are all met
// if the view must hold the pair, and else those of this block are met by none.
__device__ inline Range range_of(Segment &segment, const Blocks &blocks, const int *indices, int first_query,
                                 int last_query) {
    const int n = static_cast<int>(segment.n);
    if (segment.causal) return {0, smaller(n, last_query + 1), -1};
    if (segment.views == 0) return {0, n, -1};
    const int view = static_cast<int>(segment.views) - 1;
    const int first_block = blocks.of_query(view, first_query), last_block = blocks.of_query(view, last_query);
    const bool is_one = first_block == last_block;
    if (is_one) {
        segment.views -= 1;
        segment.inside = 0;
    }
    if (segment.offsets < 0) return {0, n, is_one ? first_block : -1};
    const int *offsets = indices + segment.offsets;
    return {offsets[first_block], offsets[last_block + 1], -1};
}
