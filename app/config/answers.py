"""Settings of conversations, plans and memories, and of the model that answers."""

from decimal import Decimal

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings

from app.config.values import HttpUrl


class AnswerSettings(BaseSettings):
    """Messages and their answers; the service that models are asked at."""

    message_max_chars: int = Field(100_000, ge=1, description="Longest message.")
    answers_queued_max: int = Field(
        10, ge=1, description="Messages of a conversation that may wait for an answer."
    )
    answer_timeout: int = Field(300, ge=1, description="Longest an answer may take.")
    answer_tool_rounds: int = Field(
        6, ge=0, le=50, description="Turns with tool calls within one answer."
    )
    memories_per_user: int = Field(10_000, ge=1, description="Memories a user may have.")
    plan_parallel_steps: int = Field(8, ge=1, le=100, description="Steps of a plan run at once.")

    llm_base_url: HttpUrl = Field(
        "", description="OpenAI-compatible service; empty: the embedded assistant."
    )
    llm_api_key: SecretStr = Field(SecretStr(""), description="Its API key.")
    llm_model: str = Field("", description="The model to ask for; needed with LLM_BASE_URL.")
    llm_connect_timeout: float = Field(10.0, gt=0, description="Seconds to connect.")
    llm_first_chunk_timeout: float = Field(
        120.0, gt=0, description="Seconds until a model begins to answer."
    )
    llm_chunk_timeout: float = Field(60.0, gt=0, description="Seconds between two chunks.")
    llm_max_retries: int = Field(3, ge=0, le=20, description="Retries before the first token.")
    llm_max_output_tokens: int | None = Field(
        None, ge=1, description="Longest answer in tokens; empty: the service decides."
    )
    llm_input_price: Decimal | None = Field(
        None, ge=0, description="US dollars per million tokens read, for cost."
    )
    llm_output_price: Decimal | None = Field(
        None, ge=0, description="US dollars per million tokens written, for cost."
    )
    embedded_word_delay_ms: int = Field(
        15, ge=0, le=1000, description="Pause between words of the embedded assistant."
    )
