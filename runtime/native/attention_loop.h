// The arithmetic of attention, over vectors of kVector floats. A file that includes it defines before, in the same
// unnamed namespace, so that nothing here is shared with files compiled for other processors:
//   Vector, zero(), all(x), load(const float*), load(const uint16_t*), store(float*, v), a + b, a - b, a * b,
//   multiplied_and_added(a, b, c) = a * b + c, rounded once, larger(a, b),
//   where_above(x, least, v), v where x is above and 0 elsewhere,
//   power_of_two(v) for whole numbers from -126 on, nearest(v), sums_of(const Vector[4], float[4]), where
//   four neighbouring numbers are added up as (0 + 2) + (1 + 3), and then their sums in the same way.

constexpr float kLeastExponent = -87.0f;  // below it e^x counts as 0
constexpr float kMinusInfinity = -__builtin_inff();
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

// The scores of the rows of one block, for one query.
template <typename Stored>
void score_block(const HeadsOfKeys& job, const Stored* keys, const float* query, int first_row, float* scores) {
    for (int row = 0; row < kPageRows; row += kTogether, keys += static_cast<int64_t>(kTogether) * job.width) {
        Vector sums[kTogether] = {zero(), zero(), zero(), zero()};
        for (int channel = 0; channel < job.width; channel += kVector) {
            const Vector part = load(query + channel);
            for (int each = 0; each < kTogether; ++each) {
                const Vector key = load(keys + static_cast<int64_t>(each) * job.width + channel);
                sums[each] = multiplied_and_added(key, part, sums[each]);
            }
        }
        float four[kTogether];
        sums_of(sums, four);
        for (int each = 0; each < kTogether; ++each) {
            const int number = first_row + row + each;
            const bool seen = number >= job.first && number < job.end;
            scores[row + each] = seen ? four[each] * job.scale : kMinusInfinity;
        }
    }
}

// Scores -> weights, of which the sum is returned.
float weigh(float* scores, int count) {
    Vector most = all(kMinusInfinity);
    for (int i = 0; i < count; i += kVector) most = larger(most, load(scores + i));
    const Vector largest = all(number_of(most, false));
    Vector total = zero();
    for (int i = 0; i < count; i += kVector) {
        const Vector weights = exponential(load(scores + i) - largest);
        store(scores + i, weights);
        total = total + weights;
    }
    return number_of(total, true);
}

// Rows [from, to) of one block, weighted, are added to `out`.
template <typename Stored>
void add_block(const HeadsOfKeys& job, const Stored* values, const float* weights, int from, int to, float* out) {
    for (int channel = 0; channel < job.width; channel += kTogether * kVector) {
        const int left = (job.width - channel) / kVector, vectors = left < kTogether ? left : kTogether;
        Vector sums[kTogether] = {zero(), zero(), zero(), zero()};
        for (int each = 0; each < vectors; ++each) sums[each] = load(out + channel + each * kVector);
        for (int row = from; row < to; ++row) {
            const Stored* at = values + static_cast<int64_t>(row) * job.width + channel;
            const Vector weight = all(weights[row]);
            for (int each = 0; each < vectors; ++each) {
                sums[each] = multiplied_and_added(load(at + each * kVector), weight, sums[each]);
            }
        }
        for (int each = 0; each < vectors; ++each) store(out + channel + each * kVector, sums[each]);
    }
}

// Block by block, of each the heads one after the other: in the order in which they are in memory.
template <typename Stored>
void attend_to(const HeadsOfKeys& job) {
    const int start = job.first / kPageRows * kPageRows;
    const int rows = (job.end + kPageRows - 1) / kPageRows * kPageRows - start;
    const int64_t page = static_cast<int64_t>(kPageRows) * job.width;
    const int queries = job.heads * job.group;
    for (int row = 0; row < rows; row += kPageRows) {
        const auto* block = static_cast<const Stored*>(job.keys) + (start + row) / kPageRows * job.block_stride;
        for (int query = 0; query < queries; ++query) {
            score_block(job, block + query / job.group * page, job.queries + static_cast<int64_t>(query) * job.width,
                        start + row, job.scores + static_cast<int64_t>(query) * rows + row);
        }
    }
    for (int query = 0; query < queries; ++query) {
        job.sums[query] = weigh(job.scores + static_cast<int64_t>(query) * rows, rows);
        for (int channel = 0; channel < job.width; ++channel) {
            job.out[static_cast<int64_t>(query) * job.width + channel] = 0.0f;
        }
    }
    for (int row = 0; row < rows; row += kPageRows) {
        const auto* block = static_cast<const Stored*>(job.values) + (start + row) / kPageRows * job.block_stride;
        const int before = job.first - start - row, behind = job.end - start - row;
        for (int query = 0; query < queries; ++query) {
            add_block(job, block + query / job.group * page,
                      job.scores + static_cast<int64_t>(query) * rows + row, before > 0 ? before : 0,
                      behind < kPageRows ? behind : kPageRows, job.out + static_cast<int64_t>(query) * job.width);
        }
    }
    for (int query = 0; query < queries; ++query) {
        const Vector share = all(1.0f / job.sums[query]);
        for (int channel = 0; channel < job.width; channel += kVector) {
            float* at = job.out + static_cast<int64_t>(query) * job.width + channel;
            store(at, load(at) * share);
        }
    }
}
