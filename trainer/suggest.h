// Did you mean: the nearest of the valid words.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace sluice {

// Edits (insert, delete, replace, swap of neighbours) from a to b; letter case and - or _ are
// equal.
int64_t edit_distance(std::string_view a, std::string_view b);

// The nearest candidate, or "" where none is near enough to be meant.
std::string nearest(std::string_view word, const std::vector<std::string>& candidates);

// "; did you mean 'x'?", or "".
std::string did_you_mean(std::string_view word, const std::vector<std::string>& candidates);

std::string join(const std::vector<std::string>& words, std::string_view separator = ", ");

}  // namespace sluice
