// Is the training step right? Answered on a small network, without any other library.
#pragma once
#include <string>

namespace sparcl {

// What was found right, in one line. Throws std::runtime_error naming what is wrong.
std::string check_training(int threads);

}  // namespace sparcl
