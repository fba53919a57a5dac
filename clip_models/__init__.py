from distill.models import *  # temporary
from distill.models import LoadedModel, ModelConfig, create_student, load_model, save_model, tokenizer_for
