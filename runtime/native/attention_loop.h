// The arithmetic of attention, over vectors of kVector floats. A file that includes it defines before, in the same
// unnamed namespace, so that nothing here is shared with files compiled for other processors:
//   Vector, zero(), all(x), load(const float*), load(const uint16_t*), store(float*, v), a + b, a - b, a * b,
//   multiplied_and_added(a, b, c) = a * b + c, rounded once, larger(a, b),
//   where_above(x, least, v), v where x is above and 0 elsewhere,
//   power_of_two(v) for whole numbers from -126 on, nearest(v), sums_of(const Vector[4], float[4]), where
//   four neighbouring numbers are added up as (0 + 2) + (1 + 3), and then their sums in the same way.

constexpr float kLeastExponent = -87.0f;  // below it e^x counts as 0
constexpr float kMinusInfinity = -__builtin_inff();
constexpr float kLeastScore = -3e38f;  // so that rows of which none is seen have weights of 0
constexpr int kTogether = 4;  // rows, or vectors of a row

float number_of(Vector values, bool sum) {
    float each[kVector];
    store(each, values);
    for (int width = kVector / 2; width > 0; width /= 2) {
        for (int i = 0; i < width; ++i) {
            each[i] = sum ? each[i] + each[i + width] : each[i] > each[i + width] ? each[i] : each[i + width];
        }
    }
    return each[0];
}

// e^x for x up to 0, to about 1e-7 of it: 2^n * e^r with r within half a step of the logarithm of 2.
Vector exponential(Vector x) {
    const Vector bounded = larger(x, all(kLeastExponent));
    const Vector n = nearest(bounded * all(1.44269504f));
    const Vector r = bounded - n * all(0.693145752f) - n * all(1.42860677e-6f);
    Vector series = all(1.0f / 720.0f);
    constexpr float kTerms[] = {1.0f / 120.0f, 1.0f / 24.0f, 1.0f / 6.0f, 0.5f, 1.0f, 1.0f};
    for (const float term : kTerms) series = multiplied_and_added(series, r, all(term));
    return where_above(x, kLeastExponent, series * power_of_two(n));
}

// The scores of the rows of one page, for one query.
template <typename Stored>
void score_page(const Chunk& chunk, const Stored* keys, const float* query, int first_row, float* scores) {
    for (int row = 0; row < kPageRows; row += kTogether, keys += static_cast<int64_t>(kTogether) * chunk.width) {
        Vector sums[kTogether] = {zero(), zero(), zero(), zero()};
        for (int channel = 0; channel < chunk.width; channel += kVector) {
            const Vector part = load(query + channel);
            for (int each = 0; each < kTogether; ++each) {
                const Vector key = load(keys + static_cast<int64_t>(each) * chunk.width + channel);
                sums[each] = multiplied_and_added(key, part, sums[each]);
            }
        }
        float four[kTogether];
        sums_of(sums, four);
        for (int each = 0; each < kTogether; ++each) {
            const int number = first_row + row + each;
            const bool seen = number >= chunk.first && number < chunk.end;
            scores[row + each] = seen ? four[each] * chunk.scale : kMinusInfinity;
        }
    }
}

// Scores -> weights, of which the sum is returned; the largest score goes to `largest`.
float weigh(float* scores, int count, float& largest) {
    Vector most = all(kLeastScore);
    for (int i = 0; i < count; i += kVector) most = larger(most, load(scores + i));
    largest = number_of(most, false);
    Vector total = zero();
    for (int i = 0; i < count; i += kVector) {
        const Vector weights = exponential(load(scores + i) - all(largest));
        store(scores + i, weights);
        total = total + weights;
    }
    return number_of(total, true);
}

// Rows [from, to) of one page, weighted, are added to `out`.
template <typename Stored>
void add_page(int width, const Stored* values, const float* weights, int from, int to, float* out) {
    for (int channel = 0; channel < width; channel += kTogether * kVector) {
        const int left = (width - channel) / kVector, vectors = left < kTogether ? left : kTogether;
        Vector sums[kTogether] = {zero(), zero(), zero(), zero()};
        for (int each = 0; each < vectors; ++each) sums[each] = load(out + channel + each * kVector);
        for (int row = from; row < to; ++row) {
            const Stored* at = values + static_cast<int64_t>(row) * width + channel;
            const Vector weight = all(weights[row]);
            for (int each = 0; each < vectors; ++each) {
                sums[each] = multiplied_and_added(load(at + each * kVector), weight, sums[each]);
            }
        }
        for (int each = 0; each < vectors; ++each) store(out + channel + each * kVector, sums[each]);
    }
}

// Page by page, of each the heads one after the other: in the order in which they are in memory.
template <typename Stored>
void attend_to(const Chunk& chunk) {
    const int64_t of_head = static_cast<int64_t>(kPageRows) * chunk.width;
    const int queries = chunk.heads * chunk.group, rows = chunk.pages * kPageRows;
    for (int page = 0; page < chunk.pages; ++page) {
        const Stored* keys = static_cast<const Stored*>(chunk.keys) + page * chunk.heads * of_head;
        for (int query = 0; query < queries; ++query) {
            score_page(chunk, keys + query / chunk.group * of_head,
                       chunk.queries + static_cast<int64_t>(query) * chunk.width, page * kPageRows,
                       chunk.scores + static_cast<int64_t>(query) * rows + page * kPageRows);
        }
    }
    for (int query = 0; query < queries; ++query) {
        chunk.sums[query] = weigh(chunk.scores + static_cast<int64_t>(query) * rows, rows, chunk.largest[query]);
        for (int channel = 0; channel < chunk.width; ++channel) {
            chunk.out[static_cast<int64_t>(query) * chunk.width + channel] = 0.0f;
        }
    }
    for (int page = 0; page < chunk.pages; ++page) {
        const Stored* values = static_cast<const Stored*>(chunk.values) + page * chunk.heads * of_head;
        const int before = chunk.first - page * kPageRows, behind = chunk.end - page * kPageRows;
        for (int query = 0; query < queries; ++query) {
            add_page(chunk.width, values + query / chunk.group * of_head,
                     chunk.scores + static_cast<int64_t>(query) * rows + page * kPageRows, before > 0 ? before : 0,
                     behind < kPageRows ? behind : kPageRows, chunk.out + static_cast<int64_t>(query) * chunk.width);
        }
    }
}

// What each query gets from all chunks: weights were relative to the largest score of a chunk, and now are to that of all.
void merge(const Merged& merged) {
    for (int query = 0; query < merged.queries; ++query) {
        float largest = kLeastScore;
        for (int chunk = 0; chunk < merged.chunks; ++chunk) {
            const float of_chunk = merged.largest[static_cast<int64_t>(chunk) * merged.queries + query];
            largest = of_chunk > largest ? of_chunk : largest;
        }
        Vector total = zero();
        for (int chunk = 0; chunk < merged.chunks; ++chunk) {
            const int64_t at = static_cast<int64_t>(chunk) * merged.queries + query;
            const Vector factor = exponential(all(merged.largest[at] - largest));
            total = multiplied_and_added(factor, all(merged.sums[at]), total);
            merged.largest[at] = number_of(factor, false);
        }
        const Vector share = all(1.0f / number_of(total, false));
        for (int channel = 0; channel < merged.width; channel += kVector) {
            Vector sum = zero();
            for (int chunk = 0; chunk < merged.chunks; ++chunk) {
                const int64_t at = static_cast<int64_t>(chunk) * merged.queries + query;
                sum = multiplied_and_added(load(merged.parts + at * merged.width + channel), all(merged.largest[at]), sum);
            }
            store(merged.out + static_cast<int64_t>(query) * merged.width + channel, sum * share);
        }
    }
}
